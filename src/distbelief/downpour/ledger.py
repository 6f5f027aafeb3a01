"""The ledger: which batches are leased to whom, and what became of every example of every epoch.

1.  An epoch's batches are leased in portions, in order; a batch is in at most one lease at a time.
2.  A lease ends in `done` or with the death of its holder. Batches that no push holds are leased again.
3.  Every example of an ended epoch is in exactly one account: used, refused (not finite), dropped (by the admission
    policy), partial (its pusher died when some shards had it), or poisoned (set aside). None of these is leased again:
    a batch that is late once will be late again, and would starve its replica.
4.  Epochs follow each other without a pause; an epoch may end after the next has begun.
5.  Where portions have become smaller, near the end of the run, a holder has one lease at a time: a slow replica that
    held a second one would keep the others waiting for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import final

from distbelief.allocation import Account, Grant, LastPush, Reason
from distbelief.downpour.ledger_state import LedgerState, Portion
from distbelief.errors import InvariantViolated
from distbelief.ports import Lease, Outcome, Verdict

_PORTION = 32
"""Batches in a portion, at most."""


@final
@dataclass(eq=False, kw_only=True)
class Ledger:
    """Hands out the data of `epochs` epochs (None: without end) or `limit` examples, whichever comes first.

    A portion has at most 32 batches, and less towards the end of the run, so that `replicas` of any speed end together;
    its size depends on its place alone. `warmstart`: examples that one holder works alone. `quorum`: holders that must
    have asked before anyone is given work; only the beginning waits for them.
    """

    examples: int
    batch_size: int
    replicas: int = 1
    epochs: int | None = None
    limit: int | None = None
    warmstart: int = 0
    quorum: int = 1

    def __post_init__(self) -> None:
        self.batches = -(-self.examples // self.batch_size)
        self.accounts: dict[int, Account] = {}
        self.total = Account()
        self.epochs_ended = 0
        self.stopped = False
        self._asked: set[int] = set()
        self._alone: int | None = None
        self._epoch, self._batch = 0, 0
        self._released: list[Lease] = []
        self._leases: dict[int, tuple[Lease, int]] = {}
        self._number = self.leased = 0
        self._held: dict[int, int] = {}
        """How many leases each holder has."""
        self._holders: frozenset[int] | None = None

    @property
    def holders(self) -> frozenset[int]:
        """Who holds leases."""
        if self._holders is None:
            self._holders = frozenset(self._held)
        return self._holders

    @property
    def epoch(self) -> int:
        """The first epoch of which something is still to be given out."""
        return min((released.epoch for released in self._released), default=self._epoch)

    @property
    def alone(self) -> bool:
        """Whether one holder works alone."""
        return self.total.total < self.warmstart

    @property
    def finished(self) -> bool:
        """Whether all work is done, or the ledger was stopped and every lease has ended."""
        return not self._leases and (self.stopped or (self._waiting is None and self._exhausted))

    @property
    def _waiting(self) -> Lease | None:
        """What was released first and is still wanted: a run may go on with an end that lies before it."""
        if self.limit is not None and self._remaining <= 0:
            return None
        return next((p for p in self._released if self.epochs is None or p.epoch < self.epochs), None)

    @property
    def _exhausted(self) -> bool:
        over = self.epochs is not None and self._epoch >= self.epochs
        return over or (self.limit is not None and self._remaining <= 0)

    @property
    def _remaining(self) -> int:
        """Examples that may still be issued, where there is a limit."""
        return (self.limit or 0) - self.total.total - self.leased

    def size(self, start: int, stop: int) -> int:
        """Examples in the batches [start, stop) of an epoch; the last batch may be smaller."""
        return min(stop * self.batch_size, self.examples) - start * self.batch_size

    def ask(self, holder: int) -> None:
        """Somebody wants work. Where several do at once, all of them ask before the first is answered."""
        self._asked.add(holder)

    def lease(self, holder: int) -> Grant:
        """Work for a holder, or why there is none."""
        self.ask(holder)
        if self.stopped or self.finished:
            return Grant(None, Reason.FINISHED)
        if len(self._asked) < self.quorum:
            return Grant(None, Reason.GATHERING)
        if self.alone:
            if self._alone is None:
                self._alone = holder
            if self._alone != holder:
                return Grant(None, Reason.WARM_START)
        if (waiting := self._waiting) is None and self._exhausted:
            return Grant(None, Reason.OUTSTANDING if self._leases else Reason.FINISHED)
        if holder in self._held and self._size < _PORTION:
            return Grant(None, Reason.AHEAD)
        portion = self._next() if waiting is None else self._again(waiting)
        self._number += 1
        lease = portion._replace(number=self._number)
        self._leases[lease.number] = lease, holder
        self._count(holder, 1)
        self.leased += self.size(lease.start, lease.stop)
        return Grant(lease, Reason.GRANTED)

    @property
    def _ahead(self) -> int | None:
        """Batches that have never been leased and are to be; None: without end."""
        ahead = None
        if self.epochs is not None:
            ahead = (self.epochs - self._epoch) * self.batches - self._batch
        if self.limit is not None:
            allowed = -(-self._remaining // self.batch_size)
            ahead = allowed if ahead is None else min(ahead, allowed)
        return ahead

    @property
    def _size(self) -> int:
        """Batches in a portion at this place of the run."""
        ahead = self._ahead
        return _PORTION if ahead is None else max(1, min(_PORTION, ahead // (4 * self.replicas)))

    def _next(self) -> Lease:
        left = self.batches - self._batch
        if (ahead := self._ahead) is not None:
            left = min(left, ahead)
        if (alone := self.warmstart - self.total.total - self.leased) > 0:
            left = min(left, -(-alone // self.batch_size))
        stop = self._batch + min(left, self._size)
        lease = Lease(0, self._epoch, self._batch, stop)
        self._epoch, self._batch = (self._epoch, stop) if stop < self.batches else (self._epoch + 1, 0)
        return lease

    def _again(self, released: Lease) -> Lease:
        """What was released, as far as the limit allows."""
        self._released.remove(released)
        if self.limit is None:
            return released
        stop = min(released.stop, released.start - (-self._remaining // self.batch_size))
        self._release(released._replace(start=stop))
        return released._replace(stop=stop)

    def done(self, number: int, outcomes: Sequence[Outcome]) -> None:
        """A lease has ended; what its outcomes leave out was not worked on, and is leased again."""
        lease = self._end(number)
        account, reached = Account(), lease.start
        for start, stop, verdict in outcomes:
            if start != reached or not start < stop <= lease.stop:
                raise InvariantViolated(f"{lease} was accounted for as {list(outcomes)}")
            reached, examples = stop, self.size(start, stop)
            if verdict.used:
                account.used += examples
            elif verdict is Verdict.NOT_FINITE:
                account.refused += examples
            else:
                account.dropped += examples
        self._spend(lease.epoch, account)
        self._release(lease._replace(start=reached))

    def died(self, holder: int, last: LastPush | None) -> Account:
        """A holder is dead: account for what its pushes hold, release the rest. Returns what was accounted for."""
        if self._alone == holder:
            self._alone = None
        spent = Account()
        for number in self.leases_of(holder):
            lease = self._end(number)
            if last is None or last.record.work.lease != number:
                self._release(lease)
                continue
            work = last.record.work
            before = self.size(lease.start, work.start) - work.refused - work.dropped
            here = Account(used=before, refused=work.refused, dropped=work.dropped)
            if last.partial:
                here.partial += work.examples
            elif last.used:
                here.used += work.examples
            else:
                here.dropped += work.examples
            self._spend(lease.epoch, here)
            spent += here
            self._release(lease._replace(start=work.stop))
        return spent

    def isolate(self, epoch: int, batch: int) -> bool:
        """Lease a batch by itself from now on; False where it is not among what was released."""
        for place, rest in enumerate(self._released):
            if rest.epoch == epoch and rest.start <= batch < rest.stop:
                borders = (rest.start, batch, batch + 1, rest.stop)
                parts = [rest._replace(start=a, stop=b) for a, b in pairwise(borders) if a < b]
                self._released[place : place + 1] = parts
                return True
        return False

    def set_aside(self, epoch: int, batch: int) -> None:
        """Account for a batch that was released as poisoned."""
        if not self.isolate(epoch, batch):
            raise InvariantViolated(f"batch {batch} of epoch {epoch} was not released, and cannot be set aside")
        self._released = [rest for rest in self._released if (rest.epoch, rest.start) != (epoch, batch)]
        self._spend(epoch, Account(poisoned=self.size(batch, batch + 1)))

    def leave(self, holder: int) -> None:
        """Somebody who is counted on at the beginning will not come any more."""
        self._asked.discard(holder)
        self.quorum -= 1

    def stop(self) -> None:
        """Give out nothing more; what is leased may still be done."""
        self.stopped = True

    def leases_of(self, holder: int) -> list[int]:
        """The numbers of a holder's leases, in the order in which it works on them."""
        return sorted(number for number, (_, who) in self._leases.items() if who == holder)

    def state(self) -> LedgerState:
        """Where the data stand, for a ledger without leases: what is written down is leased to nobody."""
        if self._leases:
            raise InvariantViolated("a ledger with leases outstanding cannot be written down")
        return LedgerState(
            examples=self.examples,
            batch_size=self.batch_size,
            next_lease=self._number + 1,
            next_epoch=self._epoch,
            next_batch=self._batch,
            epochs_ended=self.epochs_ended,
            released=tuple(Portion(lease.epoch, lease.start, lease.stop) for lease in self._released),
            total=replace(self.total),
            accounts={epoch: replace(a) for epoch, a in self.accounts.items() if epoch >= self.epochs_ended},
        )

    def restore_(self, state: LedgerState) -> None:
        """Go on from where another ledger of the same data and batch size stood."""
        self._number = state.next_lease - 1
        self._epoch, self._batch = state.next_epoch, state.next_batch
        self.epochs_ended = state.epochs_ended
        self._released = [Lease(0, portion.epoch, portion.start, portion.stop) for portion in state.released]
        self.total = replace(state.total)
        self.accounts = {epoch: replace(account) for epoch, account in state.accounts.items()}

    def _end(self, number: int) -> Lease:
        if number not in self._leases:
            raise InvariantViolated(f"lease {number} is not outstanding")
        lease, holder = self._leases.pop(number)
        self._count(holder, -1)
        self.leased -= self.size(lease.start, lease.stop)
        return lease

    def _count(self, holder: int, change: int) -> None:
        left = self._held[holder] = self._held.get(holder, 0) + change
        if not left:
            del self._held[holder]
        if left == max(change, 0):
            self._holders = None

    def _spend(self, epoch: int, account: Account) -> None:
        self.accounts[epoch] = self.accounts.get(epoch, Account()) + account
        self.total += account
        while self.epochs_ended in self.accounts and self.accounts[self.epochs_ended].total == self.examples:
            self.epochs_ended += 1

    def _release(self, rest: Lease) -> None:
        if rest.start < rest.stop:
            self._released.append(rest)

    def check(self) -> None:
        """Raise `InvariantViolated` unless every example is in exactly one place."""
        for epoch in range(self.epochs_ended, self._epoch + 1):
            waiting = [lease for lease in self._released if lease.epoch == epoch]
            leased = [lease for lease, _ in self._leases.values() if lease.epoch == epoch]
            issued = self.examples if epoch < self._epoch else self.size(0, self._batch)
            found = self.accounts.get(epoch, Account()).total + sum(
                self.size(p.start, p.stop) for p in waiting + leased
            )
            if found != issued:
                raise InvariantViolated(f"epoch {epoch}: {found} examples accounted for, {issued} issued")
