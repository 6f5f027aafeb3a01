"""A shard: one range of the parameter vector, with the state of its rule and the account of who pushed what.

Everything a shard knows lies in one block of memory that the caller gives, so that several processes can be the same
shard: whoever holds its lock acts for it. The block is

    header | histogram of staleness | replica slots | parameters | rule state … | sum of the open round

The rules of a push:

1.  Before anything is changed, the slot of the replica says which push begins and which work it holds.
2.  The header then says which slot is being applied for, and what version, round and examples will be true afterwards.
3.  The kernel runs.
4.  Version, sequence and the end mark are set in one step that can be repeated. Whoever takes the lock and finds no end
    mark knows that the holder died inside, repeats that step, and marks the push as torn.

So a death leaves no push of which it is unknown whether it began, and none is ever applied twice.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor

from distbelief.errors import InvariantViolated
from distbelief.ports import Push, Reply, Slice, Verdict, Work
from distbelief.server.admission import Admission
from distbelief.server.rules import Rule
from distbelief.server.schedules import rate

# Header fields.
_VERSION, _EXAMPLES, _HELD, _HELD_EXAMPLES, _LIVING, _PUSHES, _STALEST = range(7)
# Of the update under way: the slot it is for (or 0, or _NOBODY), then what will be true once it has ended.
_APPLYING, _NEXT_VERSION, _NEXT_EXAMPLES, _NEXT_HELD, _NEXT_HELD_EXAMPLES, _NEXT_PUSHES = range(7, 13)
_NOBODY = -1
_HEADER = 16
_BINS = 4096
# Slot fields, then two records of work, used in turn so that one is always whole.
_INCARNATION, _SEQUENCE, _BEGUN, _RECORDS = range(4)
_RECORD = len(Work._fields) + 1
_SLOT = _RECORDS + 2 * _RECORD
_PAGE = 4096
# Sets of slices whose views are kept: one, but for models that leave out parameters by turns.
_CUTS = 64


class Standing(NamedTuple):
    """The last push of a replica that a shard knows of."""

    sequence: int
    work: Work
    verdict: Verdict
    whole: bool
    """False if its pusher died while applying it."""


@dataclass(frozen=True)
class ShardSpec:
    """What a shard is made from. All who map one shard hold equal specs."""

    elements: int
    dtype: torch.dtype
    rule: Rule
    admission: Admission
    replicas: int
    """Number of replica slots, fixed for the life of the shard."""

    @property
    def vectors(self) -> dict[str, float]:
        """The vectors a shard holds, and what fills them at first."""
        held = {"round": 0.0} if self.admission.round > 1 else {}
        return {"parameters": 0.0, **self.rule.state, **held}

    @property
    def numbers(self) -> int:
        """Integers before the vectors, whole pages of them."""
        return -(-8 * (_HEADER + _BINS + self.replicas * _SLOT) // _PAGE) * _PAGE // 8

    @property
    def nbytes(self) -> int:
        """Bytes of memory that a shard takes."""
        return 8 * self.numbers + len(self.vectors) * self.elements * self.dtype.itemsize


@dataclass(frozen=True)
class Snapshot:
    """A shard at one instant. Owns its tensors."""

    numbers: Tensor
    vectors: dict[str, Tensor]

    @property
    def version(self) -> int:
        """Updates applied."""
        return int(self.numbers[_VERSION])


@final
class Shard:
    """One range of the vector. `memory` is uint8, at least `spec.nbytes`, zeroed if new; the caller owns it."""

    def __init__(self, spec: ShardSpec, memory: Tensor, lock: AbstractContextManager[object] | None = None) -> None:
        self.spec = spec
        self.lock = nullcontext() if lock is None else lock
        self._numbers = memory[: 8 * spec.numbers].view(torch.int64)
        # A memoryview answers with plain ints, ten times as fast as a tensor's or an array's elements.
        self._header = self._numbers.numpy().data
        flat = memory[8 * spec.numbers : spec.nbytes].view(spec.dtype)
        self.vectors = dict(zip(spec.vectors, flat.split(spec.elements), strict=True))
        self.parameters = self.vectors["parameters"]
        self._state = tuple(self.vectors[name] for name in spec.rule.state)
        self._step = torch.zeros(())
        self._cut: dict[tuple[Slice, ...], tuple[list[Tensor], ...]] = {}

    def initialise_(self, parameters: Tensor) -> None:
        """Fill a new shard: the given parameters (flat, copied), fresh rule state."""
        for name, value in self.spec.vectors.items():
            self.vectors[name].fill_(value)
        self.parameters.copy_(parameters)

    @property
    def version(self) -> int:
        """Updates applied so far; a push that was refused or is held does not count."""
        return self._header[_VERSION]

    @property
    def pushes(self) -> int:
        """Pushes that moved, or will move, the parameters."""
        return self._header[_PUSHES]

    @property
    def staleness(self) -> Tensor:
        """Histogram of the staleness of used pushes, int64; the last bin holds all that are staler."""
        return self._numbers[_HEADER : _HEADER + _BINS].clone()

    @property
    def stalest(self) -> int:
        """The largest staleness of a used push."""
        return self._header[_STALEST]

    def fetch(self, into: Tensor) -> int:
        """Copy the parameters out, without a lock; returns the version read before the copy."""
        version = self._header[_VERSION]
        into.copy_(self.parameters)
        return version

    def push(self, push: Push) -> Reply:
        """Admit a gradient and apply it, hold it, or refuse it. At most once for a (replica, incarnation, sequence)."""
        with self.lock:
            self._recover()
            header, slot = self._header, self._slot(push.replica)
            version = header[_VERSION]
            staleness = version - push.version
            seen = header[slot + _SEQUENCE] if push.incarnation == header[slot + _INCARNATION] else 0
            if push.incarnation < header[slot + _INCARNATION] or push.sequence <= seen:
                return Reply(Verdict.DUPLICATE, "seen before", staleness, version, 0)
            verdict, reason, scale = self.spec.admission.admit(staleness, header[_HELD], header[_LIVING])
            self._begin(slot, push, verdict)
            if verdict is Verdict.HELD:
                self._hold(push.slices, push.gradients)
            elif verdict is Verdict.APPLIED and header[_HELD]:
                self._hold(push.slices, push.gradients)
                self._close_round(header[_HELD] + 1)
            elif verdict is Verdict.APPLIED and push.slices:
                self._update(push.slices, push.gradients, scale)
            self._commit()
            if verdict.used:
                header[_HEADER + min(staleness, _BINS - 1)] += 1
                header[_STALEST] = max(header[_STALEST], staleness)
            version = header[_VERSION]
            return Reply(verdict, reason, staleness, version, version + 1 if verdict is Verdict.HELD else 0)

    def _slot(self, replica: int) -> int:
        if not 0 <= replica < self.spec.replicas:
            raise InvariantViolated(f"replica {replica} has no slot among {self.spec.replicas}")
        return _HEADER + _BINS + replica * _SLOT

    def _begin(self, slot: int, push: Push, verdict: Verdict) -> None:
        header = self._header
        if header[slot + _INCARNATION] != push.incarnation:
            header[slot + _SEQUENCE] = header[slot + _BEGUN] = 0
            header[slot + _INCARNATION] = push.incarnation
        record = slot + _RECORDS + (push.sequence & 1) * _RECORD
        for field, value in enumerate((*push.work, verdict)):
            header[record + field] = value
        applied, used = verdict is Verdict.APPLIED, verdict.used
        examples = header[_HELD_EXAMPLES] + (push.work.examples if used else 0)
        header[_NEXT_VERSION] = header[_VERSION] + applied
        header[_NEXT_EXAMPLES] = header[_EXAMPLES] + (examples if applied else 0)
        header[_NEXT_HELD] = 0 if applied else header[_HELD] + (verdict is Verdict.HELD)
        header[_NEXT_HELD_EXAMPLES] = 0 if applied else examples
        header[_NEXT_PUSHES] = header[_PUSHES] + used
        header[slot + _BEGUN] = push.sequence
        header[_APPLYING] = slot

    def _commit(self) -> None:
        """End the push under way; repeating it changes nothing."""
        header = self._header
        slot = header[_APPLYING]
        header[_VERSION] = header[_NEXT_VERSION]
        header[_EXAMPLES] = header[_NEXT_EXAMPLES]
        header[_HELD] = header[_NEXT_HELD]
        header[_HELD_EXAMPLES] = header[_NEXT_HELD_EXAMPLES]
        header[_PUSHES] = header[_NEXT_PUSHES]
        if slot > 0:
            header[slot + _SEQUENCE] = header[slot + _BEGUN]
        header[_APPLYING] = 0

    def _recover(self) -> None:
        """End a push whose pusher died inside it, and mark it as torn."""
        header = self._header
        if slot := header[_APPLYING]:
            if slot > 0:
                verdict = slot + _RECORDS + (header[slot + _BEGUN] & 1) * _RECORD + _RECORD - 1
                header[verdict] = -abs(header[verdict])
            self._commit()

    def _hold(self, slices: Sequence[Slice], gradients: Sequence[Tensor]) -> None:
        total = self.vectors["round"]
        if self._header[_HELD] == 0:
            total.zero_()
        if slices:
            torch._foreach_add_([total[s.start : s.stop] for s in slices], list(gradients))

    def _close_round(self, pushes: int) -> None:
        mean = self.vectors["round"].div_(pushes)
        self._update((Slice(0, self.spec.elements),), (mean,), 1.0)

    def _update(self, slices: tuple[Slice, ...], gradients: Sequence[Tensor], scale: float) -> None:
        """The one path by which parameters change: the rule's kernel on the slices that the gradients are for."""
        if slices not in self._cut:
            if len(self._cut) == _CUTS:
                self._cut.clear()
            self._cut[slices] = tuple([v[s.start : s.stop] for s in slices] for v in (self.parameters, *self._state))
        parameters, *state = self._cut[slices]
        self._step.fill_(self._header[_VERSION] + 1)
        lr = rate(self.spec.rule.lr, self._header[_EXAMPLES])
        self.spec.rule.update_(parameters, gradients, state, self._step, scale * lr)

    def set_living(self, replicas: int) -> None:
        """Tell how many replicas hold leases; a round that now is full is closed."""
        with self.lock:
            self._recover()
            header = self._header
            header[_LIVING] = replicas
            if (held := header[_HELD]) and held >= min(self.spec.admission.round, replicas):
                header[_NEXT_VERSION] = header[_VERSION] + 1
                header[_NEXT_EXAMPLES] = header[_EXAMPLES] + header[_HELD_EXAMPLES]
                header[_NEXT_HELD] = header[_NEXT_HELD_EXAMPLES] = 0
                header[_NEXT_PUSHES] = header[_PUSHES]
                header[_APPLYING] = _NOBODY
                self._close_round(held)
                self._commit()

    def standing(self, replica: int, incarnation: int) -> Standing | None:
        """The last push that this incarnation began here, or None; called when its process is dead."""
        with self.lock:
            self._recover()
            header, slot = self._header, self._slot(replica)
            # Dead between its own mark and the header's: nothing was changed, so it had not begun.
            header[slot + _BEGUN] = sequence = header[slot + _SEQUENCE]
            if header[slot + _INCARNATION] != incarnation or not sequence:
                return None
            record = slot + _RECORDS + (sequence & 1) * _RECORD
            *work, verdict = header[record : record + _RECORD].tolist()
            return Standing(sequence, Work(*work), Verdict(abs(verdict)), verdict > 0)

    def snapshot(self) -> Snapshot:
        """A copy of everything, taken under the lock."""
        with self.lock:
            self._recover()
            return Snapshot(self._numbers.clone(), {name: vector.clone() for name, vector in self.vectors.items()})

    def restore_(self, snapshot: Snapshot) -> None:
        """Become what was snapshot from a shard of an equal spec."""
        with self.lock:
            self._numbers.copy_(snapshot.numbers)
            for name, vector in snapshot.vectors.items():
                self.vectors[name].copy_(vector)

    def check(self) -> None:
        """Raise `InvariantViolated` unless the account of the shard is consistent."""
        with self.lock:
            self._recover()
            header = self._header
            slots = [self._slot(replica) for replica in range(self.spec.replicas)]
            faults = {
                "a sequence differs from what was begun": any(
                    header[s + _SEQUENCE] != header[s + _BEGUN] for s in slots
                ),
                "negative counts": min(header[:_STALEST].tolist()) < 0,
                "more held than a round takes": header[_HELD] >= max(2, self.spec.admission.round),
                "more updates than pushes": header[_VERSION] > header[_PUSHES],
                "a parameter is not finite": not bool(torch.isfinite(self.parameters.sum())),
            }
        if found := [fault for fault, true in faults.items() if true]:
            raise InvariantViolated(f"shard at version {self.version}: {'; '.join(found)}")
