"""Shards in private memory, what is pushed to them, and clients of them that answer at once."""

import itertools
from collections.abc import Callable, Iterable, Sequence

import torch
from distbelief.engines.simulated.hosts import ShardHost
from torch import Tensor

from distbelief.engines.simulated.link import SimulatedLink
from distbelief.engines.simulated.network import Wire
from distbelief.links.mapped import MappedLink
from distbelief.ports import Push, Slice, Work
from distbelief.server.admission import Admission, Asynchronous
from distbelief.server.block import ShardSpec
from distbelief.server.client import Client
from distbelief.server.layout import Layout
from distbelief.server.rules import SGD, Rule
from distbelief.server.shard import Shard

ON_ARRIVAL = Asynchronous()
_machines = itertools.count()
NO_WORK = Work(0, 0, 0, 0)


def make_shard(
    start: Tensor,
    rule: Rule = SGD(1.0),
    admission: Admission = ON_ARRIVAL,
    *,
    replicas: int = 4,
) -> Shard:
    """A new shard that holds `start`."""
    spec = ShardSpec(len(start), start.dtype, rule, admission, replicas)
    shard = Shard(spec, torch.zeros(spec.nbytes, dtype=torch.uint8))
    shard.initialise_(start)
    return shard


def make_shards(
    layout: Layout, start: Tensor, rule: Rule = SGD(1.0), admission: Admission = ON_ARRIVAL, *, replicas: int = 4
) -> list[Shard]:
    """New shards that hold the flat vector `start` between them."""
    return [make_shard(layout.part(start, i), rule, admission, replicas=replicas) for i in range(layout.shards)]


def make_client(layout: Layout, shards: Sequence[Shard], *, replica: int = 0, incarnation: int = 1) -> Client:
    """A client whose links answer at once."""
    return Client(layout, [MappedLink(shard) for shard in shards], replica=replica, incarnation=incarnation)


def linked(host: ShardHost, delay: Callable[[], float]) -> SimulatedLink:
    """A link in virtual time, each message of which takes its own delay."""
    return SimulatedLink(Wire(delay), f"replica {next(_machines)}", host)


def set_living(host: ShardHost, replicas: Iterable[int]) -> None:
    """Tell a host's shard who lives, as the controller does, and let go whom that lets go."""
    host.shard.set_living(replicas)
    host.look()


def make_push(
    gradient: Tensor,
    sequence: int,
    *,
    replica: int = 0,
    incarnation: int = 1,
    version: int = 0,
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
