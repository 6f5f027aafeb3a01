"""A shard: one range of the parameter vector, the state of its update rule, and the bookkeeping of its pushes.

All state lies in one block of memory that the caller provides; `block.py` defines its layout. Several processes can map
the same block. The process that holds the lock executes pushes and commands.

A push takes four steps, so that the death of its process can be repaired at any point:

1.  Before any vector changes, `Register.begin` records the push and its work in the replica's slot.
2.  It records in the header the version, round and examples that hold after the push. Last, it sets APPLYING.
3.  The kernel runs.
4.  `Register.commit` sets version and sequence, and clears APPLYING. It is idempotent. A process that takes the lock
    and finds APPLYING set knows that the previous holder died inside. It marks the push as torn, and commits it.

So it is always known whether a push began, and no push is applied twice.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from distbelief.errors import InvariantViolated
from distbelief.ports import (
    Answer,
    Capture,
    Command,
    Fence,
    Push,
    PushRecord,
    Reply,
    Restore,
    SetLiving,
    Slice,
    Snapshot,
    Verdict,
    Version,
)
from distbelief.server import block
from distbelief.server.admission import Decision
from distbelief.server.block import ShardSpec
from distbelief.server.groups import Cut, Group, cut
from distbelief.server.schedules import rate
from distbelief.server.shard_numbers import ShardNumbers

# Size of the cache of views, in sets of slices. A model needs one, or more if it leaves out varying parameters.
_CUTS = 64
_OTHER_TERM = Decision(Verdict.TOO_OLD, "computed in another term of the shard")


class _Views(NamedTuple):
    """The part of an update that one rule makes: views of the shard's vectors, in the order of the cut's slices."""

    cut: Cut
    parameters: list[Tensor]
    state: list[list[Tensor]]
    average: list[Tensor]


@final
class Shard(ShardNumbers):
    """One range of the vector. `memory` is uint8, at least `spec.nbytes`, zeroed if new; the caller owns it."""

    def __init__(self, spec: ShardSpec, memory: Tensor, lock: AbstractContextManager[object] | None = None) -> None:
        super().__init__(spec, memory[: 8 * spec.numbers].view(torch.int64))
        self.lock = nullcontext() if lock is None else lock
        flat = memory[8 * spec.numbers : spec.nbytes].view(spec.dtype)
        self.vectors = dict(zip(spec.vectors, flat.split(spec.elements), strict=True))
        self.parameters = self.vectors["parameters"]
        self._full = max(1, min(spec.admission.round, spec.replicas))
        self._groups = spec.groups or (Group(spec.rule),)
        self._step = torch.zeros((), dtype=torch.float32)
        # Where the step is written: `fill_` takes ten times as long.
        self._step_number = self._step.view(1).numpy().data
        self._handlers: dict[type, Callable[[Any], Any]] = {
            Push: self._push,
            SetLiving: self._set_living,
            Fence: self._fence,
            Capture: self._capture,
            Restore: self._restore,
        }
        self._views: dict[tuple[Slice, ...], list[_Views]] = {}

    def initialise_(
        self,
        parameters: Tensor,
        state: Mapping[str, Tensor] = {},
        *,
        updates: int = 0,
        examples: int = 0,
        term: int = 0,
    ) -> None:
        """Fill a new shard with copies of flat vectors. `state` holds rule state and average by name.

        State that is not given gets its initial value; an average that is not given starts as the parameters. `updates`
        and `examples` are the counts that belong to these vectors: schedules and Adam's step continue from them.
        """
        for name, value in self.spec.vectors.items():
            self.vectors[name].fill_(value)
        if block.AVERAGE in self.vectors:
            self.vectors[block.AVERAGE].copy_(parameters)
        for name, vector in state.items():
            self.vectors[name].copy_(vector)
        self.parameters.copy_(parameters)
        self._header[block.VERSION] = self._header[block.PUSHES] = updates
        self._header[block.EXAMPLES] = examples
        self._register.begin_term(term)

    def fetch(self, into: Tensor) -> Version:
        """Copy the parameters out, without a lock; returns the version read before the copy."""
        version = self._register.version
        into.copy_(self.parameters)
        return version

    def push(self, push: Push) -> Reply:
        """Apply, hold or refuse a gradient: at most once for each (replica, incarnation, sequence)."""
        reply: Reply = self._execute(push)
        return reply

    def execute(self, command: Command) -> Answer:
        """Execute a controller command."""
        answer: Answer = self._execute(command)
        return answer

    def _execute(self, command: Push | Command) -> Any:
        """Execute a push or command under the lock. After `initialise_`, the shard changes in no other way."""
        with self.lock:
            if self._header[block.APPLYING]:
                self._recover()
            return self._handlers[type(command)](command)

    def _recover(self) -> None:
        """Complete the update during which the previous lock holder died, if there is one."""
        if self._register.interrupted_opening:
            # The process may have died before it cleared the sum of the previous round.
            self.vectors[block.ROUND].zero_()
        self._register.recover()

    def _push(self, push: Push) -> Reply:
        register, header = self._register, self._header
        slot = register.slot(push.replica)
        if (answered := register.repeated_reply(slot, push)) is not None:
            return answered
        count, (term, computed_at) = header[block.VERSION], push.version
        staleness, decision = max(0, count - computed_at), _OTHER_TERM
        if term == header[block.TERM]:
            decision = self.spec.admission.admit(staleness, header[block.HELD], header[block.LIVING])
        verdict, reason, scale = decision
        register.begin(slot, push, verdict)
        if verdict is Verdict.HELD:
            self._hold(push.slices, push.gradients)
        elif verdict is Verdict.APPLIED and (self._full > 1 or header[block.HELD]):
            self._hold(push.slices, push.gradients)
            self._close_round(push)
        elif verdict is Verdict.APPLIED and push.slices:
            self._update(push.slices, push.gradients, scale, push.divisor)
        register.commit()
        if verdict.used:
            register.count_staleness(staleness)
        return Reply(verdict, reason, staleness, register.version, register.at_least(slot, verdict, count))

    def _hold(self, slices: Sequence[Slice], gradients: Sequence[Tensor]) -> None:
        total = self.vectors[block.ROUND]
        if self._header[block.HELD] == 0:
            total.zero_()
        if slices:
            torch._foreach_add_([total[s.start : s.stop] for s in slices], list(gradients))

    def _close_round(self, push: Push | None) -> None:
        # Divide by the number of pushes of a full round, even if some are missing because replicas died or the data
        # ended: the learning rate was chosen for full rounds. So an epoch moves the parameters equally far however many
        # replicas live, and the few pushes left at the end of a run do no harm.
        # In a warm start a single replica works alone, and one push is a full round.
        pushes = 1 if self._header[block.ALONE] else self._full
        mean = self.vectors[block.ROUND].div_(pushes * self._register.round_divisor(push))
        self._update((Slice(0, self.spec.elements),), (mean,), 1.0, 1.0)

    def _update(self, slices: tuple[Slice, ...], gradients: Sequence[Tensor], scale: float, divisor: float) -> None:
        """Run each group's kernel on the slices that have gradients. Every update takes this path.

        The moving average is updated on these slices only. A parameter without a gradient does not move, and neither
        does its average.
        """
        if (views := self._views.get(slices)) is None:
            views = self._view(slices)
        if divisor != 1.0:
            # Divide out of place: the pusher owns the tensors, and may retry the push.
            gradients = torch._foreach_div(list(gradients), divisor)
        self._step_number[0] = self._header[block.VERSION] + 1
        for part, parameters, state, average in views:
            lr = rate(part.rule.lr, self._header[block.EXAMPLES])
            part.rule.update_(parameters, part.pick(gradients), state, self._step, scale * lr)
            if self.spec.average is not None:
                torch._foreach_lerp_(average, parameters, 1 - self.spec.average)

    def _view(self, slices: tuple[Slice, ...]) -> list[_Views]:
        """Create and cache the views that a gradient with these slices changes."""
        if len(self._views) == _CUTS:
            self._views.clear()

        def views(name: str, part: Cut) -> list[Tensor]:
            return [self.vectors[name][s.start : s.stop] for s in part.slices]

        averaged = [] if self.spec.average is None else [block.AVERAGE]
        self._views[slices] = found = [
            _Views(
                part,
                views("parameters", part),
                [views(name, part) for name in self.spec.rule.state],
                [view for name in averaged for view in views(name, part)],
            )
            for part in cut(self._groups, slices)
        ]
        return found

    def _set_living(self, command: SetLiving) -> None:
        if self._register.set_living(command):
            self._register.begin_closing()
            self._close_round(None)
            self._register.commit()

    def _fence(self, command: Fence) -> PushRecord | None:
        return self._register.fence(command.replica, command.incarnation)

    def _capture(self, command: Capture) -> Snapshot:
        for name, targets in command.into.items():
            for part, target in targets:
                # NumPy copies in this thread. The threads of torch's copy wait for each other on cores busy training.
                target.numpy()[:] = self.vectors[name][part.start : part.stop].numpy()
        return Snapshot(self.numbers.clone(), {})

    def _restore(self, command: Restore) -> None:
        if command.term <= self._header[block.TERM]:
            return
        self.numbers.copy_(command.snapshot.numbers)
        for name, vector in command.snapshot.vectors.items():
            self.vectors[name].copy_(vector)
        self._register.begin_term(command.term)
        for replica, incarnation in enumerate(command.fenced):
            self._register.fence(replica, incarnation)
        self._set_living(command.living)

    def snapshot(self) -> Snapshot:
        """Copy the integers and all vectors, under the lock."""
        vectors = {name: torch.empty_like(vector) for name, vector in self.vectors.items()}
        whole = Slice(0, self.spec.elements)
        answer = self._execute(Capture({name: [(whole, vector)] for name, vector in vectors.items()}))
        return Snapshot(answer.numbers, vectors)

    def check(self) -> None:
        """Raise `InvariantViolated` unless the bookkeeping of the shard is consistent."""
        with self.lock:
            self._recover()
            if found := self.faults:
                raise InvariantViolated(f"shard at {self.version}: {'; '.join(found)}")
