"""A shard: one range of the parameter vector, with the state of its rule and the account of who pushed what.

Everything a shard knows lies in one block of memory that the caller gives, so that several processes can be the same
shard: whoever holds its lock acts for it. `block.py` says what lies where.

The rules of a push:

1.  Before anything is changed, the slot of the replica says which push begins and which work it holds.
2.  The header then says which slot is being applied for, and what version, round and examples will be true afterwards.
3.  The kernel runs.
4.  Version, sequence and the end mark are set in one step that can be repeated. Whoever takes the lock and finds no end
    mark knows that the holder died inside, repeats that step, and marks the push as torn.

So a death leaves no push of which it is unknown whether it began, and none is ever applied twice.
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
from distbelief.server.register import Register
from distbelief.server.schedules import rate

# Sets of slices whose views are kept: one, but for models that leave out parameters by turns.
_CUTS = 64
_OTHER_TERM = Decision(Verdict.TOO_OLD, "computed in another term of the shard")


class _Views(NamedTuple):
    """The part of an update that one rule makes: views of the shard's vectors, in the order of the cut's slices."""

    cut: Cut
    parameters: list[Tensor]
    state: list[list[Tensor]]
    average: list[Tensor]


@final
class Shard:
    """One range of the vector. `memory` is uint8, at least `spec.nbytes`, zeroed if new; the caller owns it."""

    def __init__(self, spec: ShardSpec, memory: Tensor, lock: AbstractContextManager[object] | None = None) -> None:
        self.spec = spec
        self.lock = nullcontext() if lock is None else lock
        self._numbers = memory[: 8 * spec.numbers].view(torch.int64)
        # A memoryview answers with plain ints, ten times as fast as a tensor's or an array's elements.
        self._header = self._numbers.numpy().data
        self._register = Register(spec, self._header)
        flat = memory[8 * spec.numbers : spec.nbytes].view(spec.dtype)
        self.vectors = dict(zip(spec.vectors, flat.split(spec.elements), strict=True))
        self.parameters = self.vectors["parameters"]
        self._full = max(1, min(spec.admission.round, spec.replicas))
        self._reached = block.VERSION if spec.admission.lead is None else block.SLOWEST
        self._groups = spec.groups or (Group(spec.rule),)
        self._step = torch.zeros((), dtype=torch.float32)
        self._obey: dict[type, Callable[[Any], Any]] = {
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
        """Fill a new shard: parameters, rule state and average (flat, copied), fresh where not given.

        `updates` and `examples` are what it had reached when these were taken, for schedules and for Adam's step.
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

    @property
    def version(self) -> Version:
        """The shard's term, and the updates applied so far; a push that was refused or is held does not count."""
        return self._register.version

    @property
    def reached(self) -> Version:
        """What fetches wait for: the version; where a policy paces them, the steps of the slowest living replica."""
        return Version(self._header[block.TERM], self._header[self._reached])

    @property
    def learning_rate(self) -> float:
        """Of the next update, by the rule of the parameters that are in no group."""
        return rate(self.spec.rule.lr, self._header[block.EXAMPLES])

    @property
    def pushes(self) -> int:
        """Pushes that moved, or will move, the parameters."""
        return self._header[block.PUSHES]

    @property
    def living(self) -> int:
        """How many replicas hold leases, as far as the shard has been told."""
        return self._header[block.LIVING]

    @property
    def staleness(self) -> Tensor:
        """Histogram of the staleness of used pushes, int64; the last bin holds all that are staler."""
        return self._numbers[block.HEADER : block.HEADER + block.BINS].clone()

    @property
    def stalest(self) -> int:
        """The largest staleness of a used push."""
        return self._header[block.STALEST]

    def fetch(self, into: Tensor) -> Version:
        """Copy the parameters out, without a lock; returns the version read before the copy."""
        version = self._register.version
        into.copy_(self.parameters)
        return version

    def push(self, push: Push) -> Reply:
        """Admit a gradient and apply it, hold it, or refuse it. At most once for a (replica, incarnation, sequence)."""
        reply: Reply = self._execute(push)
        return reply

    def execute(self, command: Command) -> Answer:
        """Obey a command of the controller's."""
        answer: Answer = self._execute(command)
        return answer

    def _execute(self, command: Push | Command) -> Any:
        """The one way by which a shard changes: one command after the other, each under the lock."""
        with self.lock:
            if self._header[block.APPLYING]:
                self._recover()
            return self._obey[type(command)](command)

    def _recover(self) -> None:
        """End what the last holder of the lock died in."""
        if self._register.opens_round:
            # It may have died before it had cleared the sum of the round before.
            self.vectors[block.ROUND].zero_()
        self._register.recover()

    def _push(self, push: Push) -> Reply:
        register, header = self._register, self._header
        slot = register.slot(push.replica)
        if (answered := register.answered(slot, push)) is not None:
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
        # By the pushes of a full round, also where some are missing, since their pushers died or the data end: it is
        # the whole that the learning rate was chosen for. So an epoch moves the parameters as far, whoever is there,
        # and the few pushes that are left at the end of a run do no harm.
        # The one who makes a warm start is a whole of its own.
        pushes = 1 if self._header[block.ALONE] else self._full
        mean = self.vectors[block.ROUND].div_(pushes * self._register.round_divisor(push))
        self._update((Slice(0, self.spec.elements),), (mean,), 1.0, 1.0)

    def _update(self, slices: tuple[Slice, ...], gradients: Sequence[Tensor], scale: float, divisor: float) -> None:
        """The one path by which parameters change: each group's kernel on the slices that the gradients are for.

        The average takes a step towards the parameters there, and there only: one that gets no gradient has not moved,
        and its average stands still with it until it moves again.
        """
        if (views := self._views.get(slices)) is None:
            views = self._view(slices)
        if divisor != 1.0:
            # The pusher's tensors stay as they are, since a push may be sent again.
            gradients = torch._foreach_div(list(gradients), divisor)
        self._step.fill_(self._header[block.VERSION] + 1)
        for part, parameters, state, average in views:
            lr = rate(part.rule.lr, self._header[block.EXAMPLES])
            part.rule.update_(parameters, part.pick(gradients), state, self._step, scale * lr)
            if self.spec.average is not None:
                torch._foreach_lerp_(average, parameters, 1 - self.spec.average)

    def _view(self, slices: tuple[Slice, ...]) -> list[_Views]:
        """The views that a gradient of these slices changes, which are kept."""
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
                # Not torch's copy, whose threads wait for each other on cores that are busy training.
                target.numpy()[:] = self.vectors[name][part.start : part.stop].numpy()
        return Snapshot(self._numbers.clone(), {})

    def _restore(self, command: Restore) -> None:
        if command.term <= self._header[block.TERM]:
            return
        self._numbers.copy_(command.snapshot.numbers)
        for name, vector in command.snapshot.vectors.items():
            self.vectors[name].copy_(vector)
        self._register.begin_term(command.term)
        for replica, incarnation in enumerate(command.fenced):
            self._register.fence(replica, incarnation)
        self._set_living(command.living)

    def snapshot(self) -> Snapshot:
        """A copy of everything, taken under the lock."""
        vectors = {name: torch.empty_like(vector) for name, vector in self.vectors.items()}
        whole = Slice(0, self.spec.elements)
        answer = self._execute(Capture({name: [(whole, vector)] for name, vector in vectors.items()}))
        return Snapshot(answer.numbers, vectors)

    def check(self) -> None:
        """Raise `InvariantViolated` unless the account of the shard is consistent."""
        with self.lock:
            self._recover()
            if found := self._register.faults():
                raise InvariantViolated(f"shard at {self.version}: {'; '.join(found)}")
