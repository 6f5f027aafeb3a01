"""Shards in private memory, what is pushed to them, and clients of them that answer at once."""

import itertools
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from distbelief.engines.simulated.link import SimulatedLink
from distbelief.engines.simulated.network import Wire
from distbelief.links.mapped import MappedLink
from distbelief.ports import ORIGIN, Fence, Push, PushRecord, SetLiving, Slice, Version, Work
from distbelief.server.admission import Admission, Asynchronous
from distbelief.server.block import ShardSpec
from distbelief.server.client import Client
from distbelief.server.groups import Group, groups_of
from distbelief.server.host import ShardHost
from distbelief.server.layout import Layout
from distbelief.server.rules import SGD, Rule
from distbelief.server.shard import Shard

ON_ARRIVAL = Asynchronous()
_machines = itertools.count()
_commands = itertools.count(1)
NO_WORK = Work(0, 0, 0, 0)


def at(updates: int, term: int = 0) -> Version:
    """The version of a shard after so many updates."""
    return Version(term, updates)


def make_shard(
    start: Tensor,
    rule: Rule = SGD(1.0),
    admission: Admission = ON_ARRIVAL,
    *,
    replicas: int = 4,
    groups: tuple[Group, ...] = (),
    average: float | None = None,
) -> Shard:
    """A new shard that holds `start`."""
    spec = ShardSpec(len(start), start.dtype, rule, admission, replicas, groups, average)
    shard = Shard(spec, torch.zeros(spec.nbytes, dtype=torch.uint8))
    shard.initialise_(start)
    return shard


def make_shards(
    layout: Layout, start: Tensor, rule: Rule = SGD(1.0), admission: Admission = ON_ARRIVAL, *, replicas: int = 4
) -> list[Shard]:
    """New shards that hold the flat vector `start` between them."""
    return [
        make_shard(layout.part(start, i), rule, admission, replicas=replicas, groups=groups)
        for i, groups in enumerate(groups_of(rule, layout))
    ]


def make_client(layout: Layout, shards: Sequence[Shard], *, replica: int = 0, incarnation: int = 1) -> Client:
    """A client whose links answer at once."""
    return Client(layout, [MappedLink(shard) for shard in shards], replica=replica, incarnation=incarnation)


def linked(host: ShardHost, delay: Callable[[], float]) -> SimulatedLink:
    """A link in virtual time, each message of which takes its own delay."""
    return SimulatedLink(Wire(delay), f"replica {next(_machines)}", host)


def living(replicas: Iterable[int], *, alone: bool = False) -> SetLiving:
    """The next command that says who lives."""
    return SetLiving(next(_commands), frozenset(replicas), alone)


def set_living(to: Shard | ShardHost, replicas: Iterable[int], *, alone: bool = False) -> None:
    """Tell a shard, or its host, who lives, as the controller does."""
    if isinstance(to, ShardHost):
        to.execute(living(replicas, alone=alone), lambda answer, nbytes: None)
    else:
        to.execute(living(replicas, alone=alone))


def fence(shard: Shard, replica: int, incarnation: int) -> PushRecord | None:
    """Have a shard take nothing more from an incarnation; the last push of it that the shard knows."""
    record = shard.execute(Fence(replica, incarnation))
    assert record is None or isinstance(record, PushRecord)
    return record


def make_push(
    gradient: Tensor,
    sequence: int,
    *,
    replica: int = 0,
    incarnation: int = 1,
    version: Version = ORIGIN,
    examples: int = 1,
    work: Work | None = None,
) -> Push:
    """A push of a whole shard's gradient."""
    work = Work(sequence, 0, 1, examples) if work is None else work
    whole = (Slice(0, len(gradient)),)
    return Push(replica, incarnation, sequence, version, work, whole, [gradient])


def flat_layout(elements: int, shards: int = 1, dtype: torch.dtype = torch.float32) -> Layout:
    """The layout of one parameter, "w"."""
    return Layout.of([("w", torch.zeros(elements, dtype=dtype))], shards)


def vector_of(layout: Layout, shards: Sequence[Shard]) -> Tensor:
    """What the shards hold, as one flat vector."""
    return torch.cat([shard.parameters for shard in shards])[: layout.length]
