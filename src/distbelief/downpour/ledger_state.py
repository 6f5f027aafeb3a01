"""The state of a ledger in a checkpoint: plain values, validated when they are constructed.

The state has no outstanding leases: every leased batch has been accounted for or released.
"""

import math
from dataclasses import dataclass, replace

from distbelief.allocation import Account


@dataclass(frozen=True)
class Portion:
    """The batches [start, stop) of an epoch. No replica holds a lease on them."""

    epoch: int
    start: int
    stop: int


@dataclass(frozen=True)
class LedgerState:
    """The position of a run in its data.

    Raises `ValueError` if the numbers are inconsistent.
    """

    examples: int
    """Examples per epoch."""
    batch_size: int
    next_lease: int
    """The number of the next lease. A resumed run continues the numbering."""
    next_epoch: int
    next_batch: int
    epochs_ended: int
    released: tuple[Portion, ...]
    """Portions to lease again, in this order."""
    total: Account
    accounts: dict[int, Account]
    """The account of each epoch that has begun and not ended, as far as it has one."""

    def __post_init__(self) -> None:
        counts = [self.next_epoch, self.next_batch, self.epochs_ended]
        counts += [n for account in (self.total, *self.accounts.values()) for n in vars(account).values()]
        if min(self.examples, self.batch_size, self.next_lease) < 1 or min(counts) < 0:
            raise ValueError("a count of the ledger is too small")
        batches = -(-self.examples // self.batch_size)
        # `next_epoch` comes from a file and may be corrupt. Each epoch begun before it has an account or a released
        # portion, which bounds it. Without this bound, a huge `next_epoch` would make the loop below almost endless.
        most = self.epochs_ended + len(self.released) + len(self.accounts)
        begun = range(self.epochs_ended, min(self.next_epoch, most) + 1)
        places = {*self.accounts, *(portion.epoch for portion in self.released)}
        if self.next_batch >= batches or self.next_epoch not in begun or not places <= set(begun):
            raise ValueError(f"the ledger cannot be at batch {self.next_batch} of epoch {self.next_epoch}")
        for portion in self.released:
            if not 0 <= portion.start < portion.stop <= batches:
                raise ValueError(f"the ledger cannot have released {portion}")
        for epoch in begun:
            issued = self.examples if epoch < self.next_epoch else self._size(0, self.next_batch)
            waiting = sum(self._size(p.start, p.stop) for p in self.released if p.epoch == epoch)
            if self._spent(epoch) + waiting != issued:
                raise ValueError(f"the ledger does not add up in epoch {epoch}")
        if self.total.total != self.epochs_ended * self.examples + sum(map(self._spent, self.accounts)):
            raise ValueError("the ledger's total is not the sum of its epochs")

    def recut(self, batch_size: int) -> "LedgerState":
        """Convert the position to another batch size.

        Raises `ValueError` if a new batch would straddle a border between examples accounted for and others.
        """
        places = [self.next_batch, *(place for portion in self.released for place in (portion.start, portion.stop))]
        inside = math.gcd(*(place * self.batch_size for place in places if place * self.batch_size < self.examples))
        if inside % batch_size:
            raise ValueError(
                f"it stopped inside an epoch that it had begun in batches of {self.batch_size}; choose that "
                f"again, or another size that divides {inside:,}"
            )

        def moved(place: int) -> int:
            return -(-min(place * self.batch_size, self.examples) // batch_size)

        return replace(
            self,
            batch_size=batch_size,
            next_batch=moved(self.next_batch),
            released=tuple(Portion(p.epoch, moved(p.start), moved(p.stop)) for p in self.released),
        )

    def _size(self, start: int, stop: int) -> int:
        return min(stop * self.batch_size, self.examples) - start * self.batch_size

    def _spent(self, epoch: int) -> int:
        return self.accounts.get(epoch, Account()).total
