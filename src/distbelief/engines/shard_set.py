"""All shards of a run, as its record sees them: what they hold, how far they are, where a checkpoint of them goes."""

from collections.abc import Mapping, Sequence
from typing import Protocol, final

import torch
from torch import Tensor

from distbelief.ports import Answer, Capture, Command, PushRecord, Slice, Snapshot
from distbelief.run.checkpoint import Checkpoint
from distbelief.run.prepare import Prepared
from distbelief.run.state import PARAMETERS, flat_state, key, parameters_into_
from distbelief.server.admission import Asynchronous
from distbelief.server.block import ShardSpec
from distbelief.server.groups import groups_of
from distbelief.server.shard import Shard


def memory_needed(prepared: Prepared, *, models_here: bool) -> dict[str, int]:
    """Bytes that a run takes at the least, by what they are for; `models_here`: replicas compute in this memory."""
    vector = prepared.layout.length * prepared.layout.dtype.itemsize
    always = {
        "parameters and optimizer state": sum(spec.nbytes for spec in shard_specs(prepared)),
        "a checkpoint of them": vector * (1 + len(prepared.method.kept)),
    }
    models = {f"models and gradients of {prepared.replicas} replicas": 2 * vector * prepared.replicas}
    return always | models if models_here else always


def shard_specs(prepared: Prepared) -> list[ShardSpec]:
    """What each shard of a run is.

    Where replicas are paced, the first shard keeps the pace for all: two shards that have not seen the same pushes may
    each have another replica wait, for ever.
    """
    method, layout = prepared.method, prepared.layout
    others = method.admission if method.admission.lead is None else Asynchronous()
    return [
        ShardSpec(
            high - low,
            layout.dtype,
            method.optimizer,
            others if number else method.admission,
            prepared.replicas,
            groups,
            method.average,
        )
        for number, (low, high, groups) in enumerate(
            zip(layout.borders, layout.borders[1:], groups_of(method.optimizer, layout), strict=False)
        )
    ]


class HeldShard(Protocol):
    """A shard as the controller's process holds it: in its own memory, or by asking the machine that it is on."""

    @property
    def vectors(self) -> Mapping[str, Tensor]:
        """The shard's vectors by name: read only, and a copy where they are elsewhere."""

    @property
    def pushes(self) -> int:
        """Pushes that moved, or will move, the parameters."""

    @property
    def staleness(self) -> Tensor:
        """Histogram of the staleness of used pushes."""

    @property
    def stalest(self) -> int:
        """The largest of them."""

    @property
    def learning_rate(self) -> float:
        """Of the next update."""

    def initialise_(
        self, parameters: Tensor, state: Mapping[str, Tensor] = ..., *, updates: int, examples: int, term: int
    ) -> None:
        """Fill a new shard with copies of vectors."""

    def execute(self, command: Command) -> Answer:
        """Have a command obeyed, and wait for the answer."""

    def check(self) -> None:
        """Raise `InvariantViolated` unless the bookkeeping is consistent."""


def as_written(prepared: Prepared, spec: ShardSpec, shard: int, written: Checkpoint | None, vector: Tensor) -> Snapshot:
    """A shard as a checkpoint holds it or, without one, as it begins: with its part of `vector`, which is changed."""
    layout, scratch = prepared.layout, Shard(spec, torch.zeros(spec.nbytes, dtype=torch.uint8))
    state, counts = dict[str, Tensor](), {}
    if written is not None:
        parameters_into_(vector, layout, written.tensors)
        state = flat_state(layout, written.tensors, prepared.method.kept, vector)
        counts = {"updates": written.state.updates, "examples": written.state.examples}
    parts = {name: layout.part(flat, shard) for name, flat in state.items()}
    scratch.initialise_(layout.part(vector, shard), parts, **counts)
    return Snapshot(scratch.numbers, scratch.vectors)


@final
class Shards:
    """The shards of a run, which it fills as the run begins. The caller owns their memory."""

    def __init__(self, prepared: Prepared, vector: Tensor, shards: Sequence[HeldShard]) -> None:
        method, self._layout = prepared.method, prepared.layout
        self._kept = tuple(method.kept)
        self._shards = shards
        self._partial = [0] * len(shards)
        resumed = prepared.resumed
        state = {} if resumed is None else flat_state(self._layout, resumed.tensors, method.kept, vector)
        # Adam corrects its means by the number of updates: means that begin anew need a count that does. Those that do
        # not take smaller steps for a while; the other way round, the new ones would take too large ones.
        self._version = 0 if resumed is None or prepared.changes.fresh else resumed.state.updates
        examples = 0 if resumed is None else resumed.state.examples
        for number, shard in enumerate(self._shards):
            parts = {name: self._layout.part(flat, number) for name, flat in state.items()}
            start = self._layout.part(vector, number)
            shard.initialise_(start, parts, updates=self._version, examples=examples, term=prepared.term)

    @property
    def updates(self) -> int:
        """Pushes that every shard used."""
        counts = zip(self._shards, self._partial, strict=True)
        # A shard that was restored may have fewer pushes than it once had partial ones.
        return max(0, min(shard.pushes - partial for shard, partial in counts) - self._version)

    @property
    def staleness(self) -> Tensor:
        """Histogram of the pushes that were used, a row a shard."""
        return torch.stack([shard.staleness for shard in self._shards])

    @property
    def stalest(self) -> int:
        """The largest staleness of a used push."""
        return max(shard.stalest for shard in self._shards)

    @property
    def learning_rate(self) -> float:
        """Of the next update, by the rule of the parameters that are in no group."""
        return self._shards[0].learning_rate

    def fetch(self, into: Tensor, vector: str = PARAMETERS) -> None:
        """Copy all parameters into a flat vector, or what belongs to them of another vector of the shards."""
        for number, shard in enumerate(self._shards):
            self._layout.part(into, number).copy_(shard.vectors[vector])

    def count_partial(self, records: Sequence[PushRecord | None]) -> None:
        """A dead replica's last push is at some shards and not at others: it is no update of the run."""
        newest = max(record.sequence for record in records if record is not None)
        for number, record in enumerate(records):
            if record is not None and record.sequence == newest and record.verdict.used:
                self._partial[number] += 1

    def captures(self, into: Mapping[str, Tensor]) -> list[Capture]:
        """The commands that copy every shard to where it belongs in "VECTOR/NAME" tensors."""
        return [Capture(self._targets(into, number)) for number in range(len(self._shards))]

    def execute_each(self, commands: Sequence[Command]) -> list[Answer]:
        """Have each shard obey a command of its own, here and now."""
        return [shard.execute(command) for shard, command in zip(self._shards, commands, strict=True)]

    def _targets(self, into: Mapping[str, Tensor], shard: int) -> dict[str, list[tuple[Slice, Tensor]]]:
        names = [entry.name for entry in self._layout.entries]
        return {
            vector: [
                (piece.slice, into[key(vector, names[piece.entry])].view(-1)[piece.start : piece.stop])
                for piece in self._layout.pieces[shard]
            ]
            for vector in (PARAMETERS, *self._kept)
        }

    @property
    def finite(self) -> bool:
        """Whether every parameter is a finite number."""
        return all(bool(torch.isfinite(shard.vectors[PARAMETERS]).all()) for shard in self._shards)

    def check(self) -> None:
        """Raise `InvariantViolated` unless every shard's account is consistent."""
        for shard in self._shards:
            shard.check()
