"""The ledger: which replica holds a lease on which batches, and the outcome of every example of every epoch.

1.  An epoch's batches are leased in portions, in order; a batch is in at most one lease at a time.
2.  A lease ends in `done` or with the death of its holder. Batches that are in no push are leased again.
3.  Every example of an ended epoch is counted exactly once: as used, refused (gradient not finite), dropped (by the
    admission policy), partial (its replica died when only some shards had the push), or poisoned (set aside). None of
    these is leased again: a batch that is late once would be late again, and would starve its replica.
4.  Epochs follow each other without a pause; an epoch may end after the next has begun.
5.  Where portions are small, near the end of the run, a holder has one lease: the others would wait for its second one.
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
    """Hands out the data of `epochs` epochs (None: no limit) or `limit` examples, whichever comes first.

    A portion has at most 32 batches, and fewer towards the end of the run, so that `replicas` of different speeds end
    together; its size depends only on its position in the run. `examples`: per epoch. `warmstart`: examples that a
    single replica works on at the start. `quorum`: replicas that must ask, and live, before the first lease is granted.
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
        self._asked, self._gone = set[int](), set[int]()
        self._alone: int | None = None
        self._epoch, self._batch = 0, 0
        self._released: list[Lease] = []
        self._leases: dict[int, tuple[Lease, int]] = {}
        self._number = self._leased = 0
        self._lease_counts: dict[int, int] = {}
        """Number of outstanding leases of each holder."""
        self._holders: frozenset[int] | None = None

    @property
    def holders(self) -> frozenset[int]:
        """The replicas that hold leases."""
        if self._holders is None:
            self._holders = frozenset(self._lease_counts)
        return self._holders

    @property
    def epoch(self) -> int:
        """The first epoch that still has batches to lease."""
        return min((released.epoch for released in self._released), default=self._epoch)

    @property
    def alone(self) -> bool:
        """Whether the warm start is under way, in which a single replica works alone."""
        return self.total.total < self.warmstart

    @property
    def finished(self) -> bool:
        """Whether all work is done, or the ledger was stopped and every lease has ended."""
        return not self._leases and (self.stopped or (self._next_released is None and self._exhausted))

    @property
    def _next_released(self) -> Lease | None:
        """The first released portion that is still to be leased, or None.

        A resumed run can end before the run that it continues: released portions beyond its end stay unleased.
        """
        if self.limit is not None and self._remaining <= 0:
            return None
        return next((p for p in self._released if self.epochs is None or p.epoch < self.epochs), None)

    @property
    def _exhausted(self) -> bool:
        over = self.epochs is not None and self._epoch >= self.epochs
        return over or (self.limit is not None and self._remaining <= 0)

    @property
    def _remaining(self) -> int:
        """Number of examples that `limit` still allows to be leased. Only meaningful if there is a limit."""
        return (self.limit or 0) - self.total.total - self._leased

    def size(self, start: int, stop: int) -> int:
        """Examples in the batches [start, stop) of an epoch; the last batch may be smaller."""
        return min(stop * self.batch_size, self.examples) - start * self.batch_size

    def ask(self, holder: int) -> None:
        """Count a replica that wants work for the quorum. If several ask at once, call this for all before `lease`."""
        self._asked.add(holder)

    def lease(self, holder: int) -> Grant:
        """Grant a lease to a replica, or return the reason why there is none."""
        self.ask(holder)
        if self.stopped or self.finished:
            return Grant(None, Reason.FINISHED)
        if len(self._asked) < min(self.quorum, self.replicas - len(self._gone)):
            return Grant(None, Reason.GATHERING)
        self.quorum = 0
        if self.alone:
            if self._alone is None:
                self._alone = holder
            if self._alone != holder:
                return Grant(None, Reason.WARM_START)
        if (waiting := self._next_released) is None and self._exhausted:
            return Grant(None, Reason.OUTSTANDING if self._leases else Reason.FINISHED)
        if holder in self._lease_counts and self._portion_batches < _PORTION:
            return Grant(None, Reason.AHEAD)
        portion = self._lease_new() if waiting is None else self._lease_released(waiting)
        self._number += 1
        lease = portion._replace(number=self._number)
        self._leases[lease.number] = lease, holder
        self._count(holder, 1)
        self._leased += self.size(lease.start, lease.stop)
        return Grant(lease, Reason.GRANTED)

    @property
    def _batches_left(self) -> int | None:
        """Number of batches that are still to be leased for the first time; None: no limit."""
        ends = [] if self.epochs is None else [(self.epochs - self._epoch) * self.batches - self._batch]
        if self.limit is not None:
            ends.append(-(-self._remaining // self.batch_size))
        return min(ends, default=None)

    @property
    def _portion_batches(self) -> int:
        """Maximum number of batches in the next portion, at this position in the run."""
        ahead = self._batches_left
        return _PORTION if ahead is None else max(1, min(_PORTION, ahead // (4 * self.replicas)))

    def _lease_new(self) -> Lease:
        left = self.batches - self._batch
        if (ahead := self._batches_left) is not None:
            left = min(left, ahead)
        if (alone := self.warmstart - self.total.total - self._leased) > 0:
            left = min(left, -(-alone // self.batch_size))
        stop = self._batch + min(left, self._portion_batches)
        lease = Lease(0, self._epoch, self._batch, stop)
        self._epoch, self._batch = (self._epoch, stop) if stop < self.batches else (self._epoch + 1, 0)
        return lease

    def _lease_released(self, released: Lease) -> Lease:
        """Take a released portion for a new lease. What exceeds `limit` stays released."""
        self._released.remove(released)
        if self.limit is None:
            return released
        stop = min(released.stop, released.start - (-self._remaining // self.batch_size))
        self._release(released._replace(start=stop))
        return released._replace(stop=stop)

    def done(self, number: int, outcomes: Sequence[Outcome]) -> None:
        """End a lease, and count the examples of its outcomes. Batches after the last outcome are leased again."""
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
        """End the leases of a dead replica: count the examples in its pushes, release the rest. Returns the counts."""
        self._asked.discard(holder)
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
        """Split a released portion so that a batch is leased by itself. False if the batch is not released."""
        for place, rest in enumerate(self._released):
            if rest.epoch == epoch and rest.start <= batch < rest.stop:
                borders = (rest.start, batch, batch + 1, rest.stop)
                parts = [rest._replace(start=a, stop=b) for a, b in pairwise(borders) if a < b]
                self._released[place : place + 1] = parts
                return True
        return False

    def set_aside(self, epoch: int, batch: int) -> None:
        """Count a released batch as poisoned, so that it is not leased again."""
        if not self.isolate(epoch, batch):
            raise InvariantViolated(f"batch {batch} of epoch {epoch} was not released, and cannot be set aside")
        self._released = [rest for rest in self._released if (rest.epoch, rest.start) != (epoch, batch)]
        self._spend(epoch, Account(poisoned=self.size(batch, batch + 1)))

    def leave(self, holder: int) -> None:
        """Lower the quorum to the replicas that may still come: this one will not take part."""
        self._gone.add(holder)

    def stop(self) -> None:
        """Grant no more leases. Outstanding leases may still end with `done`."""
        self.stopped = True

    def leases_of(self, holder: int) -> list[int]:
        """The numbers of a holder's leases, in the order in which it works on them."""
        return sorted(number for number, (_, who) in self._leases.items() if who == holder)

    def state(self) -> LedgerState:
        """Return the state to store in a checkpoint. Raises `InvariantViolated` if leases are outstanding."""
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
        """Continue from the state of another ledger with the same data and batch size."""
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
        self._leased -= self.size(lease.start, lease.stop)
        return lease

    def _count(self, holder: int, change: int) -> None:
        left = self._lease_counts[holder] = self._lease_counts.get(holder, 0) + change
        if not left:
            del self._lease_counts[holder]
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
        """Raise `InvariantViolated` unless accounts, released portions and leases add up to the examples issued."""
        for epoch in range(self.epochs_ended, self._epoch + 1):
            waiting = [lease for lease in self._released if lease.epoch == epoch]
            leased = [lease for lease, _ in self._leases.values() if lease.epoch == epoch]
            issued = self.examples if epoch < self._epoch else self.size(0, self._batch)
            found = self.accounts.get(epoch, Account()).total + sum(
                self.size(p.start, p.stop) for p in waiting + leased
            )
            if found != issued:
                raise InvariantViolated(f"epoch {epoch}: {found} examples accounted for, {issued} issued")
