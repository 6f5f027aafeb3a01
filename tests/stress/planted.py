"""Bugs planted on purpose, each of a kind that somebody might write: random clusters must find every one of them.

`python -m tests.stress.planted [--seeds N] [--bug NAME]` runs up to N clusters with each bug, and says which
found it first. A checker that finds none of them would find nothing else either.
"""

import argparse
import itertools
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch

from distbelief.allocation import Account, LastPush, last_push
from distbelief.downpour.lease_client import LeaseClient
from distbelief.downpour.lease_server import LeaseServer
from distbelief.downpour.ledger import Ledger
from distbelief.engines.controller import Controller
from distbelief.engines.outstanding import Outstanding
from distbelief.engines.supervision import Ending
from distbelief.ports import Outcome, PushRecord, Reply, Restore, SetLiving, Version
from distbelief.server import block
from distbelief.server.client import Client
from distbelief.server.register import Register
from distbelief.server.shard import Shard
from tests.stress import clusters

_LONGEST_S = 15
Bug = Callable[[], Any]
"""Plants a bug for a block."""
BUGS: dict[str, Bug] = {}


def bug(function: Callable[[], Iterator[None]]) -> Callable[[], Iterator[None]]:
    """Register a bug by its name."""
    BUGS[function.__name__] = contextmanager(function)
    return function


def _patch(owner: object, name: str, value: object) -> Any:
    return mock.patch.object(owner, name, value)


# In the shard


@bug
def a_repeated_push_is_applied_again() -> Iterator[None]:
    with _patch(Register, "repeated_reply", lambda self, slot, push: None):
        yield


@bug
def a_fence_is_forgotten() -> Iterator[None]:
    def fence(self: Register, replica: int, incarnation: int) -> PushRecord | None:
        return block.record_in(self.numbers, replica, incarnation)

    with _patch(Register, "fence", fence):
        yield


@bug
def an_older_term_is_taken() -> Iterator[None]:
    inner = Shard._push

    def push(self: Shard, push: Any) -> Reply:
        return inner(self, push._replace(version=Version(self.version.term, push.version.updates)))

    with _patch(Shard, "_push", push):
        yield


@bug
def a_restored_shard_keeps_its_term() -> Iterator[None]:
    inner = Register.begin_term

    def begin(self: Register, term: int) -> None:
        inner(self, min(term, 0))

    with _patch(Register, "begin_term", begin):
        yield


@bug
def an_overtaken_command_is_obeyed() -> Iterator[None]:
    inner = Register.set_living

    def living(self: Register, command: SetLiving) -> bool:
        self.numbers[block.COMMAND] = 0
        return inner(self, command)

    with _patch(Register, "set_living", living):
        yield


@bug
def a_restored_shard_forgets_the_dead() -> Iterator[None]:
    inner = Shard._restore

    def restore(self: Shard, command: Restore) -> None:
        inner(self, command._replace(fenced=()))

    with _patch(Shard, "_restore", restore):
        yield


@bug
def the_slowest_is_not_followed() -> Iterator[None]:
    with _patch(Register, "_slowest", lambda self: 0):
        yield


@bug
def a_late_push_joins_the_next_round() -> Iterator[None]:
    from distbelief.ports import Verdict
    from distbelief.server.admission import Buffered, Decision

    def admit(self: Buffered, staleness: int, held: int, living: int) -> Decision:
        needed = max(1, min(self.m, living))
        return Decision(Verdict.HELD if held + 1 < needed else Verdict.APPLIED, "")

    with _patch(Buffered, "admit", admit):
        yield


# In the ledger


@bug
def what_a_dead_replica_pushed_is_leased_again() -> Iterator[None]:
    inner = Ledger.died

    def died(self: Ledger, holder: int, last: LastPush | None) -> Account:
        return inner(self, holder, None)

    with _patch(Ledger, "died", died):
        yield


@bug
def what_a_dead_replica_held_is_lost() -> Iterator[None]:
    inner = Ledger.died

    def died(self: Ledger, holder: int, last: LastPush | None) -> Account:
        before = len(self._released)
        account = inner(self, holder, last)
        while len(self._released) > before:
            self._released.pop()
        return account

    with _patch(Ledger, "died", died):
        yield


@bug
def an_unfinished_lease_is_not_released() -> Iterator[None]:
    with _patch(Ledger, "_release", lambda self, rest: None):
        yield


@bug
def a_partial_push_counts_as_none() -> Iterator[None]:
    def forgetful(records: Sequence[PushRecord | None]) -> LastPush | None:
        last = last_push(records)
        return None if last is None or last.partial else last

    with _patch(sys.modules[Controller.__module__], "last_push", forgetful):
        yield


@bug
def a_released_portion_is_leased_twice() -> Iterator[None]:
    inner = Ledger._lease_released

    def again(self: Ledger, released: Any) -> Any:
        lease = inner(self, released)
        if released.number >= 0:
            # Once only: a portion without end would never let the run end.
            self._released.append(released._replace(number=-1))
        return lease

    with _patch(Ledger, "_lease_released", again):
        yield


@bug
def what_is_set_aside_is_not_accounted_for() -> Iterator[None]:
    inner = Ledger._spend

    def spend(self: Ledger, epoch: int, account: Account) -> None:
        if not account.poisoned:
            inner(self, epoch, account)

    with _patch(Ledger, "_spend", spend):
        yield


@bug
def what_is_set_aside_is_leased_again() -> Iterator[None]:
    with _patch(Ledger, "set_aside", lambda self, epoch, batch: None):
        yield


# In the controller


@bug
def a_dead_replica_is_replaced_before_it_is_fenced() -> Iterator[None]:
    inner = Controller.ended

    def ended(self: Controller, now: float, replica: int, incarnation: int, ending: Ending) -> None:
        inner(self, now, replica, incarnation, ending)
        slot = self.slots[replica]
        if slot.fencing and not self.allocator.finished and self.stopped_by is None:
            self._start(now, slot)

    with _patch(Controller, "ended", ended):
        yield


@bug
def leases_are_released_before_the_fence() -> Iterator[None]:
    inner = Controller.ended

    def ended(self: Controller, now: float, replica: int, incarnation: int, ending: Ending) -> None:
        if self._slot(replica, incarnation) is not None:
            self.allocator.died(replica, None)
        inner(self, now, replica, incarnation, ending)

    with _patch(Controller, "ended", ended):
        yield


@bug
def accounts_move_on_while_snapshots_are_taken() -> Iterator[None]:
    def at_once(self: Outstanding, change: Callable[..., None], *arguments: object) -> None:
        change(*arguments)

    with _patch(Outstanding, "when_still", at_once):
        yield


@bug
def a_shard_that_is_back_is_not_restored() -> Iterator[None]:
    with _patch(Controller, "returned", lambda self, shard: None):
        yield


@bug
def a_lease_is_granted_before_the_shards_know() -> Iterator[None]:
    inner = LeaseServer.__init__

    def init(self: LeaseServer, allocator: Any, *, counts_living: bool) -> None:
        inner(self, allocator, counts_living=False)

    with _patch(LeaseServer, "__init__", init):
        yield


# In the lease server and its client


@bug
def a_repeated_account_is_taken_twice() -> Iterator[None]:
    inner = LeaseServer.account

    def account(self: LeaseServer, replica: int, incarnation: int, number: int, lease: int, outcomes: Any) -> Any:
        if (slot := self._slot(replica, incarnation)) is not None and slot.told == number:
            slot.told -= 1
        return inner(self, replica, incarnation, number, lease, outcomes)

    with _patch(LeaseServer, "account", account):
        yield


@bug
def a_repeated_request_gets_another_lease() -> Iterator[None]:
    inner = LeaseServer.request

    def request(self: LeaseServer, replica: int, incarnation: int, number: int) -> Any:
        if (slot := self._slot(replica, incarnation)) is not None and slot.asked == number:
            slot.asked -= 1
        return inner(self, replica, incarnation, number)

    with _patch(LeaseServer, "request", request):
        yield


@bug
def accounts_are_not_numbered() -> Iterator[None]:
    inner = LeaseClient.done

    def done(self: LeaseClient, lease: Any, outcomes: Sequence[Outcome]) -> Awaitable[None]:
        self._told = 0
        return inner(self, lease, outcomes)

    with _patch(LeaseClient, "done", done):
        yield


@bug
def who_leaves_says_that_it_has_done_all() -> Iterator[None]:
    inner = LeaseClient.done

    def done(self: LeaseClient, lease: Any, outcomes: Sequence[Outcome]) -> Awaitable[None]:
        if self._leaving() and outcomes:
            outcomes = [*outcomes[:-1], outcomes[-1]._replace(stop=lease.stop)]
        return inner(self, lease, outcomes)

    with _patch(LeaseClient, "done", done):
        yield


# In the client of the shards


@bug
def a_push_that_is_sent_again_gets_a_new_number() -> Iterator[None]:
    from distbelief.engines.simulated.link import SimulatedLink

    inner = SimulatedLink.push
    numbers = itertools.count(1)

    async def push(self: SimulatedLink, push: Any) -> Reply:
        return await inner(self, push._replace(sequence=push.sequence * 1000 + next(numbers) % 1000))

    with _patch(SimulatedLink, "push", push):
        yield


@bug
def a_replica_that_was_turned_away_waits() -> Iterator[None]:
    inner = Client.push

    async def push(self: Client, *arguments: Any) -> list[Reply]:
        replies = await inner(self, *arguments)
        self._at_least = [reply.at_least for reply in replies]
        return replies

    with _patch(Client, "push", push):
        yield


def found(name: str, seed: int) -> bool:
    """Whether the cluster of a seed finds a bug."""
    torch.set_num_threads(1)
    signal.alarm(_LONGEST_S)
    try:
        with BUGS[name]():
            return clusters.attempt(seed) is not None
    except (BaseExceptionGroup, clusters.TooLongError):
        return True
    finally:
        signal.alarm(0)


def _begin() -> None:
    signal.signal(signal.SIGALRM, clusters.too_long)
    # A run that a checker ends leaves tasks behind, of which asyncio complains.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def main() -> int:
    """Plant each bug; 1 if any was not found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=500, help="how many clusters have to find a bug")
    parser.add_argument("--bug", choices=sorted(BUGS), help="one alone")
    given = parser.parse_args()
    missed = 0
    with ProcessPoolExecutor(initializer=_begin) as pool:
        for name in [given.bug] if given.bug else BUGS:
            first = None
            for low in range(0, given.seeds, 20):
                seeds = range(low, min(low + 20, given.seeds))
                outcomes = list(pool.map(found, [name] * len(seeds), seeds))
                if any(outcomes):
                    first = low + outcomes.index(True)
                    break
            missed += first is None
            told = f"not found by {given.seeds} clusters" if first is None else f"found by cluster {first}"
            print(f"{name.replace('_', ' ')}: {told}", flush=True)
    print(f"{len(BUGS)} bugs, {missed} missed")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
