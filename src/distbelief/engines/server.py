"""The parameter server as the controller sees it: all shards of a run, wherever their memory lies."""

import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import final

import torch
from torch import Tensor

from distbelief.downpour.ledger import LastPush, last_push
from distbelief.ports import Slice
from distbelief.run.prepare import Prepared
from distbelief.run.state import PARAMETERS, flat_state, key
from distbelief.server.admission import Asynchronous
from distbelief.server.block import ShardSpec, Snapshot
from distbelief.server.shard import Shard


def shard_specs(prepared: Prepared) -> list[ShardSpec]:
    """What each shard of a run is.

    Where replicas are paced, the first shard keeps the pace for all: two shards that have not seen the same pushes may
    each have another replica wait, for ever.
    """
    method, layout = prepared.method, prepared.layout
    others = method.admission if method.admission.lead is None else Asynchronous()
    return [
        ShardSpec(high - low, layout.dtype, method.optimizer, others if number else method.admission, prepared.replicas)
        for number, (low, high) in enumerate(itertools.pairwise(layout.borders))
    ]


@final
class Server:
    """The controller's side of the shards, which it fills as the run begins. The caller owns their memory."""

    def __init__(self, prepared: Prepared, vector: Tensor, shards: Sequence[Shard]) -> None:
        method, self._layout = prepared.method, prepared.layout
        self._rule = method.optimizer
        self._shards = shards
        self._partial = [0] * len(shards)
        resumed = prepared.resumed
        state = {} if resumed is None else flat_state(self._layout, resumed.tensors, method.optimizer)
        # Adam corrects its means by the number of updates: means that begin anew need a count that does. Those that do
        # not take smaller steps for a while; the other way round, the new ones would take too large ones.
        self._version = 0 if resumed is None or prepared.changes.fresh else resumed.state.updates
        examples = 0 if resumed is None else resumed.state.examples
        for number, shard in enumerate(self._shards):
            parts = {name: self._layout.part(flat, number) for name, flat in state.items()}
            shard.initialise_(self._layout.part(vector, number), parts, version=self._version, examples=examples)

    @property
    def updates(self) -> int:
        """Pushes that every shard used."""
        counts = zip(self._shards, self._partial, strict=True)
        return min(shard.pushes - partial for shard, partial in counts) - self._version

    @property
    def staleness(self) -> Tensor:
        """Histogram of the pushes that were used, a row a shard."""
        return torch.stack([shard.staleness for shard in self._shards])

    @property
    def stalest(self) -> int:
        """The largest staleness of a used push."""
        return max(shard.stalest for shard in self._shards)

    def fetch(self, into: Tensor) -> None:
        """Copy all parameters into a flat vector."""
        for number, shard in enumerate(self._shards):
            shard.fetch(self._layout.part(into, number))

    def set_living(self, replicas: Collection[int], *, alone: bool) -> None:
        """Tell every shard which replicas hold leases, and whether one of them makes a warm start."""
        for shard in self._shards:
            shard.set_living(replicas, alone=alone)

    def died(self, replica: int, incarnation: int) -> LastPush | None:
        """What the shards know of a dead replica's last push; they take no more from it."""
        standings = [shard.fence(replica, incarnation) for shard in self._shards]
        last = last_push(standings)
        if last is not None and last.partial:
            for number, standing in enumerate(standings):
                if standing is not None and standing.sequence == last.standing.sequence and standing.verdict.used:
                    self._partial[number] += 1
        return last

    def copy_out(self, into: Mapping[str, Tensor]) -> list[Snapshot]:
        """Copy every shard to where it belongs in "VECTOR/NAME" tensors, each under its lock for its own copy alone.

        Returns the shards' accounts at these instants.
        """
        return [shard.copy_out(self._targets(into, number)) for number, shard in enumerate(self._shards)]

    def _targets(self, into: Mapping[str, Tensor], shard: int) -> dict[str, list[tuple[Slice, Tensor]]]:
        names = [entry.name for entry in self._layout.entries]
        return {
            vector: [
                (piece.slice, into[key(vector, names[piece.entry])].view(-1)[piece.start : piece.stop])
                for piece in self._layout.pieces[shard]
            ]
            for vector in (PARAMETERS, *self._rule.state)
        }

    @property
    def finite(self) -> bool:
        """Whether every parameter is a finite number."""
        return all(bool(torch.isfinite(shard.parameters).all()) for shard in self._shards)

    def check(self) -> None:
        """Raise `InvariantViolated` unless every shard's account is consistent."""
        for shard in self._shards:
            shard.check()
