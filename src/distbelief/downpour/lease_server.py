"""The lease server: answers requests for work, and accounts of it, that may come twice, late, or not at all.

1.  A replica numbers its requests for work from 1, and its accounts likewise; it repeats each until it is answered.
2.  A request of the newest number is answered again with the reply that it had; one of an older number is not answered.
3.  A replica that was shut out, or of another incarnation, is not answered.
4.  Where the admission policy counts the living, a lease is granted when every shard knows its holder: a push that came
    before would find a round that does not wait for it.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple, final

from distbelief.allocation import Allocator, Reason
from distbelief.ports import Lease, Outcome, SetLiving


class Granted(NamedTuple):
    """A reply to a request for work; None: there will be no more."""

    replica: int
    incarnation: int
    number: int
    lease: Lease | None


class _Slot:
    """What one incarnation has asked and told, and the reply to its newest request."""

    def __init__(self, incarnation: int) -> None:
        self.incarnation = incarnation
        self.asked = 0
        self.told = 0
        self.reply: Granted | None = None


@final
class LeaseServer:
    """Between the replicas' requests and the allocator."""

    def __init__(self, allocator: Allocator, *, counts_living: bool) -> None:
        self.living = SetLiving(0, frozenset(), False)
        """The newest command that tells the shards who holds leases."""
        self._allocator = allocator
        self._counts_living = counts_living
        self._slots: dict[int, _Slot] = {}
        self._waiting: dict[int, None] = {}
        """Replicas whose newest request has no reply yet, in the order in which they asked."""
        self._ahead: set[int] = set()
        """Those of them that are not given a second lease: they are not asked about again before they end the first."""
        self._known = 0
        """The newest command that every shard has obeyed."""
        self._held: deque[tuple[int, Granted]] = deque()
        """Replies that wait for a command of this number to be obeyed."""

    def open(self, replica: int, incarnation: int) -> None:
        """A replica begins; what the incarnation before it asked is forgotten."""
        self._slots[replica] = _Slot(incarnation)

    def shut(self, replica: int) -> None:
        """A replica is dead: what is still under way from it has no effect."""
        self._slots.pop(replica, None)
        self._waiting.pop(replica, None)
        self._ahead.discard(replica)
        self._held = deque(held for held in self._held if held[1].replica != replica)

    def waits(self, replica: int) -> bool:
        """Whether a replica's request is unanswered."""
        return replica in self._waiting

    def request(self, replica: int, incarnation: int, number: int) -> Granted | None:
        """A request for work has come; the reply that it had before, if it is a repetition of one that was answered."""
        slot = self._slot(replica, incarnation)
        if slot is None or number < slot.asked:
            return None
        if number == slot.asked:
            return slot.reply
        slot.asked, slot.reply = number, None
        self._waiting[replica] = None
        return None

    def account(
        self, replica: int, incarnation: int, number: int, lease: int, outcomes: Sequence[Outcome]
    ) -> tuple[bool, bool]:
        """An account of a lease has come; whether to acknowledge it, and whether it is new."""
        slot = self._slot(replica, incarnation)
        if slot is None or number < slot.told:
            return False, False
        if number == slot.told:
            return True, False
        slot.told = number
        self._ahead.discard(replica)
        self._allocator.done(lease, outcomes)
        return True, True

    def settle(self, holds: Callable[[], bool] = lambda: False) -> SetLiving | None:
        """Grant what can be granted now. Returns the command to be obeyed by every shard, if the living are others.

        `holds` is asked before each lease whether work is held back.
        """
        granted = self._grant(holds)
        living = frozenset() if self._allocator.stopped else self._allocator.holders
        alone = self._allocator.alone
        changed = (living, alone) != (self.living.replicas, self.living.alone)
        if changed:
            self.living = SetLiving(self.living.number + 1, living, alone)
        self._held.extend((self.living.number, one) for one in granted)
        return self.living if changed else None

    def obeyed(self, number: int) -> None:
        """Every shard has obeyed a command."""
        self._known = max(self._known, number)

    def take(self) -> list[Granted]:
        """The replies that are to be sent now, in the order in which they were granted."""
        taken = []
        while self._held and (not self._counts_living or self._held[0][0] <= self._known):
            _, granted = self._held.popleft()
            self._slots[granted.replica].reply = granted
            taken.append(granted)
        return taken

    def _grant(self, holds: Callable[[], bool]) -> list[Granted]:
        over = self._allocator.stopped or self._allocator.finished
        asking = [replica for replica in self._waiting if over or replica not in self._ahead]
        for replica in asking:
            self._allocator.ask(replica)
        granted = []
        for replica in asking:
            if not over and holds():
                break
            lease, reason = self._allocator.lease(replica)
            if reason is Reason.OUTSTANDING:
                # So it is for all others.
                break
            if reason is Reason.AHEAD:
                self._ahead.add(replica)
            elif lease is not None or reason is Reason.FINISHED:
                slot = self._slots[replica]
                granted.append(Granted(replica, slot.incarnation, slot.asked, lease))
                del self._waiting[replica]
        return granted

    def _slot(self, replica: int, incarnation: int) -> _Slot | None:
        slot = self._slots.get(replica)
        return None if slot is None or slot.incarnation != incarnation else slot
