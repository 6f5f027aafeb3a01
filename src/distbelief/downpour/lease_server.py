"""The lease server: answers work requests and reports of ended leases. Messages may be repeated, delayed or lost.

1.  A replica numbers its work requests from 1, and its reports likewise. It retries each until it is answered.
2.  A retry of the newest request gets the same reply again. An older request gets no reply.
3.  A message from a replica that was shut out, or from another incarnation, gets no reply.
4.  Where the admission policy counts living replicas, the server sends a lease only after every shard knows its holder.
    Otherwise a push could arrive in a round that does not wait for its replica.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple, final

from distbelief.allocation import Allocator, Reason
from distbelief.ports import Lease, Outcome, SetLiving


class LeaseReply(NamedTuple):
    """The reply to a work request; `lease=None`: there is no more work."""

    replica: int
    incarnation: int
    number: int
    lease: Lease | None


class _Slot:
    """The newest request and report numbers of one incarnation, and the reply to the newest request."""

    def __init__(self, incarnation: int) -> None:
        self.incarnation = incarnation
        self.asked = 0
        self.told = 0
        self.reply: LeaseReply | None = None


@final
class LeaseServer:
    """Answers the replicas' work requests with leases from the allocator."""

    def __init__(self, allocator: Allocator, *, counts_living: bool) -> None:
        self.living = SetLiving(0, frozenset(), False)
        """The newest command to the shards; it lists the replicas that hold leases."""
        self._allocator = allocator
        self._counts_living = counts_living
        self._slots: dict[int, _Slot] = {}
        self._waiting: dict[int, None] = {}
        """Replicas whose newest request has no reply yet, in the order in which they asked."""
        self._one_lease_only: set[int] = set()
        """Waiting replicas that get no second lease now. They are skipped until they report the end of a lease."""
        self._leaving: set[int] = set()
        """Replicas that get no more work."""
        self._executed = 0
        """Number of the newest command that every shard has executed."""
        self._pending: deque[tuple[int, LeaseReply]] = deque()
        """Pending replies, each with the number of the command that every shard must execute first."""

    def open(self, replica: int, incarnation: int) -> None:
        """Register a new incarnation of a replica. Its request and report numbers start anew."""
        self._slots[replica] = _Slot(incarnation)

    def shut(self, replica: int) -> None:
        """Remove a dead replica. Its messages that are still under way have no effect."""
        self._slots.pop(replica, None)
        self._waiting.pop(replica, None)
        self._one_lease_only.discard(replica)
        self._leaving.discard(replica)
        self._pending = deque(held for held in self._pending if held[1].replica != replica)

    def dismiss(self, replica: int) -> None:
        """Grant a replica nothing more: it is about to leave. Its requests are answered with None."""
        self._leaving.add(replica)

    def waits(self, replica: int) -> bool:
        """Whether a replica's request is unanswered."""
        return replica in self._waiting

    def request(self, replica: int, incarnation: int, number: int) -> LeaseReply | None:
        """Handle a work request. Returns the earlier reply if this is a retry of an answered request, else None."""
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
        """Handle the report of an ended lease. Returns whether to acknowledge the report, and whether it is new."""
        slot = self._slot(replica, incarnation)
        if slot is None or number < slot.told:
            return False, False
        if number == slot.told:
            return True, False
        slot.told = number
        self._one_lease_only.discard(replica)
        self._allocator.done(lease, outcomes)
        return True, True

    def settle(self, holds: Callable[[], bool] = lambda: False) -> SetLiving | None:
        """Grant all leases that can be granted now. Returns a command for every shard if the lease holders changed.

        The start and the end of a warm start count as a change too. `holds` is called before each lease; if it returns
        True, no further lease is granted now.
        """
        granted = self._grant(holds)
        living = frozenset() if self._allocator.stopped else self._allocator.holders
        alone = self._allocator.alone
        changed = (living, alone) != (self.living.replicas, self.living.alone)
        if changed:
            self.living = SetLiving(self.living.number + 1, living, alone)
        self._pending.extend((self.living.number, one) for one in granted)
        return self.living if changed else None

    def obeyed(self, number: int) -> None:
        """Record that every shard has executed the command with this number."""
        self._executed = max(self._executed, number)

    def take(self) -> list[LeaseReply]:
        """Remove and return the replies that can be sent now, in the order in which they were granted."""
        taken = []
        while self._pending and (not self._counts_living or self._pending[0][0] <= self._executed):
            _, granted = self._pending.popleft()
            self._slots[granted.replica].reply = granted
            taken.append(granted)
        return taken

    def _grant(self, holds: Callable[[], bool]) -> list[LeaseReply]:
        over = self._allocator.stopped or self._allocator.finished
        granted = [self._reply(replica, None) for replica in list(self._waiting) if replica in self._leaving]
        asking = [replica for replica in self._waiting if over or replica not in self._one_lease_only]
        for replica in asking:
            self._allocator.ask(replica)
        for replica in asking:
            if not over and holds():
                break
            lease, reason = self._allocator.lease(replica)
            if reason is Reason.OUTSTANDING:
                # All other replicas would get the same answer.
                break
            if reason is Reason.AHEAD:
                self._one_lease_only.add(replica)
            elif lease is not None or reason is Reason.FINISHED:
                granted.append(self._reply(replica, lease))
        return granted

    def _reply(self, replica: int, lease: Lease | None) -> LeaseReply:
        del self._waiting[replica]
        slot = self._slots[replica]
        return LeaseReply(replica, slot.incarnation, slot.asked, lease)

    def _slot(self, replica: int, incarnation: int) -> _Slot | None:
        slot = self._slots.get(replica)
        return None if slot is None or slot.incarnation != incarnation else slot
