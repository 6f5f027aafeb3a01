"""The rules of the lease server, in its order."""

import pytest

from distbelief.allocation import Account
from distbelief.downpour.lease_server import LeaseReply, LeaseServer
from distbelief.downpour.ledger import Ledger
from distbelief.ports import Lease, Outcome, SetLiving, Verdict


def ledger_of(batches: int = 1000, *, replicas: int = 2, **options: int) -> Ledger:
    return Ledger(examples=10 * batches, batch_size=10, replicas=replicas, epochs=1, **options)


def server_of(ledger: Ledger, *, counts_living: bool = False) -> LeaseServer:
    """Replicas 0 to 3, each in incarnation 1, share an epoch."""
    server = LeaseServer(ledger, counts_living=counts_living)
    for replica in range(4):
        server.open(replica, 1)
    return server


def granted(server: LeaseServer) -> list[LeaseReply]:
    server.settle()
    return server.take()


def ask(server: LeaseServer, number: int, *, replica: int = 0, incarnation: int = 1) -> Lease:
    """A request that is granted at once."""
    assert server.request(replica, incarnation, number) is None
    (reply,) = granted(server)
    assert reply[:3] == (replica, incarnation, number)
    assert reply.lease is not None
    return reply.lease


def whole(lease: Lease) -> list[Outcome]:
    return [Outcome(lease.start, lease.stop, Verdict.APPLIED)]


def test_rule_1_each_request_of_a_new_number_is_granted_once() -> None:
    server = server_of(ledger := ledger_of())
    first, second = ask(server, 1), ask(server, 2)
    assert (first.start, second.start) == (0, first.stop)
    assert granted(server) == []
    assert server.account(0, 1, 1, first.number, whole(first)) == (True, True)
    assert server.account(0, 1, 2, second.number, whole(second)) == (True, True)
    assert ledger.total == Account(used=640)


def test_rule_2_a_request_that_comes_again_has_the_same_reply() -> None:
    server = server_of(ledger := ledger_of())
    lease = ask(server, 1)
    for _ in range(3):
        assert server.request(0, 1, 1) == LeaseReply(0, 1, 1, lease)
        assert granted(server) == []
    assert ledger.holders == {0}


def test_rule_2_a_request_that_was_overtaken_is_not_answered() -> None:
    server = server_of(ledger_of())
    ask(server, 1)
    second = ask(server, 2)
    assert server.request(0, 1, 1) is None
    assert granted(server) == []
    assert server.request(0, 1, 2) == LeaseReply(0, 1, 2, second)


def test_rule_2_a_request_that_waits_may_come_again() -> None:
    server = server_of(ledger_of(warmstart=1000))
    ask(server, 1)
    for _ in range(3):
        assert server.request(1, 1, 1) is None
        assert granted(server) == []
        assert server.waits(1)


def test_rule_2_the_end_is_told_again() -> None:
    server = server_of(ledger_of(1))
    lease = ask(server, 1)
    server.account(0, 1, 1, lease.number, whole(lease))
    server.request(0, 1, 2)
    assert granted(server) == [LeaseReply(0, 1, 2, None)]
    assert server.request(0, 1, 2) == LeaseReply(0, 1, 2, None)


def test_rule_2_an_account_that_comes_again_is_acknowledged_and_not_counted() -> None:
    server = server_of(ledger := ledger_of())
    first, second = ask(server, 1), ask(server, 2)
    for new in (True, False, False):
        assert server.account(0, 1, 1, first.number, whole(first)) == (True, new)
    server.account(0, 1, 2, second.number, whole(second))
    assert server.account(0, 1, 1, first.number, whole(first)) == (False, False), "who sent it has heard by now"
    assert ledger.total == Account(used=640)


@pytest.mark.parametrize("who", [(0, 1), (0, 3), (5, 1)], ids=["the dead", "one to come", "nobody"])
def test_rule_3_nobody_else_is_answered(who: tuple[int, int]) -> None:
    server = server_of(ledger := ledger_of())
    lease = ask(server, 1)
    server.shut(0)
    ledger.died(0, None)
    server.open(0, 2)
    assert server.request(*who, 1) is None
    assert server.request(*who, 2) is None
    assert server.account(*who, 1, lease.number, whole(lease)) == (False, False)
    assert granted(server) == []
    assert ledger.total == Account()


def test_rule_3_who_is_shut_out_waits_no_longer() -> None:
    server = server_of(ledger := ledger_of(warmstart=1000))
    ask(server, 1)
    server.request(1, 1, 1)
    server.shut(1)
    assert not server.waits(1)
    server.shut(1)
    ledger.stop()
    assert granted(server) == []


def test_rule_3_the_next_incarnation_begins_its_numbers_anew() -> None:
    server = server_of(ledger := ledger_of())
    ask(server, 1)
    lease = ask(server, 2)
    server.shut(0)
    ledger.died(0, None)
    server.open(0, 2)
    assert ask(server, 1, incarnation=2).start == 0
    assert server.account(0, 2, 1, lease.number + 1, [])


def test_rule_4_a_lease_waits_until_every_shard_knows_its_holder() -> None:
    server = server_of(ledger_of(), counts_living=True)
    for replica in (0, 1):
        server.request(replica, 1, 1)
    command = server.settle()
    assert command == server.living == SetLiving(1, frozenset([0, 1]), False)
    assert server.take() == []
    assert not server.waits(0), "it is granted, but not told"
    assert server.request(0, 1, 1) is None, "nor is it told when it asks again"
    server.obeyed(1)
    replies = server.take()
    assert [reply.replica for reply in replies] == [0, 1]
    assert server.request(0, 1, 1) == replies[0]


def test_rule_4_a_lease_of_who_is_known_already_waits_for_nothing() -> None:
    server = server_of(ledger_of(), counts_living=True)
    server.request(0, 1, 1)
    server.settle()
    server.obeyed(1)
    server.take()
    server.request(0, 1, 2)
    assert server.settle() is None
    assert len(server.take()) == 1


def test_rule_4_replies_keep_their_order_and_old_acknowledgements_let_nobody_go() -> None:
    server = server_of(ledger_of(), counts_living=True)
    server.request(0, 1, 1)
    server.settle()
    server.request(1, 1, 1)
    assert server.settle() == SetLiving(2, frozenset([0, 1]), False)
    server.obeyed(1)
    assert [reply.replica for reply in server.take()] == [0]
    server.obeyed(2)
    server.obeyed(1)
    assert [reply.replica for reply in server.take()] == [1]


def test_rule_4_who_is_shut_out_meanwhile_is_not_granted() -> None:
    server = server_of(ledger := ledger_of(), counts_living=True)
    for replica in (0, 1):
        server.request(replica, 1, 1)
    server.settle()
    server.shut(0)
    ledger.died(0, None)
    server.open(0, 2)
    server.obeyed(1)
    assert [reply.replica for reply in server.take()] == [1]


def test_rule_4_a_policy_that_does_not_count_the_living_does_not_wait_for_them() -> None:
    server = server_of(ledger_of())
    server.request(0, 1, 1)
    assert server.settle() is not None
    assert len(server.take()) == 1


def test_the_living_are_told_when_they_are_others_and_after_a_stop_there_are_none() -> None:
    server = server_of(ledger := ledger_of(warmstart=100))
    assert server.settle() == SetLiving(1, frozenset(), True), "a warm start is to come"
    assert server.settle() is None
    lease = ask(server, 1)
    assert server.living == SetLiving(2, frozenset([0]), True)
    server.account(0, 1, 1, lease.number, whole(lease))
    assert server.settle() == SetLiving(3, frozenset(), False)
    ask(server, 2)
    ledger.stop()
    assert server.settle() == SetLiving(5, frozenset(), False)


def test_who_asked_first_is_answered_first() -> None:
    server = server_of(ledger_of(replicas=3))
    for replica in (2, 0, 1):
        server.request(replica, 1, 1)
    assert [(reply.replica, reply.lease and reply.lease.start) for reply in granted(server)] == [
        (2, 0),
        (0, 32),
        (1, 64),
    ]


def test_who_can_be_granted_waits_for_nobody_who_cannot() -> None:
    """One waits for the end of the warm start, another is ahead: a third is answered all the same."""
    server = server_of(ledger_of(100, replicas=4))
    for replica in (0, 1):
        ask(server, 1, replica=replica)
    server.request(0, 1, 2)
    assert granted(server) == [], "near the end nobody is given a second lease"
    assert server.waits(0)
    ask(server, 1, replica=2)
    assert server.waits(0)


def test_a_quorum_is_granted_together() -> None:
    server = server_of(ledger_of(replicas=3, quorum=3))
    for replica in (0, 1):
        server.request(replica, 1, 1)
        assert granted(server) == []
    server.request(2, 1, 1)
    replies = granted(server)
    assert [reply.replica for reply in replies] == [0, 1, 2]
    assert all(reply.lease is not None for reply in replies)


def test_who_waits_for_a_holder_is_given_what_the_dead_one_leaves() -> None:
    server = server_of(ledger := ledger_of(1))
    lease = ask(server, 1)
    server.request(1, 1, 1)
    assert granted(server) == []
    server.shut(0)
    ledger.died(0, None)
    (reply,) = granted(server)
    assert (reply.replica, reply.lease) == (1, lease._replace(number=reply.lease.number if reply.lease else 0))


def test_the_end_is_told_to_all_who_wait() -> None:
    server = server_of(ledger_of(1, replicas=3))
    lease = ask(server, 1)
    for replica in (1, 2):
        server.request(replica, 1, 1)
    server.request(0, 1, 2)
    assert granted(server) == []
    server.account(0, 1, 1, lease.number, whole(lease))
    assert granted(server) == [LeaseReply(r, 1, n, None) for r, n in ((1, 1), (2, 1), (0, 2))]


def test_who_is_dismissed_is_told_that_there_is_no_more_work_whatever_it_waits_for() -> None:
    """Ahead near the end, alone in a warm start, or with too few there to begin: it would be waited for in vain."""
    ahead = server_of(ledger_of(100, replicas=4))
    ask(ahead, 1)
    warm = server_of(ledger_of(warmstart=100))
    ask(warm, 1, replica=1)
    for server, number in ((ahead, 2), (warm, 1), (server_of(ledger_of(quorum=2)), 1)):
        server.request(0, 1, number)
        assert granted(server) == []
        server.dismiss(0)
        assert granted(server) == [LeaseReply(0, 1, number, None)]
        assert server.request(0, 1, number) == LeaseReply(0, 1, number, None), "a retry"
        server.request(0, 1, number + 1)
        assert granted(server) == [LeaseReply(0, 1, number + 1, None)]


def test_who_is_dismissed_accounts_for_what_it_holds_and_its_successor_is_granted_it() -> None:
    server = server_of(ledger := ledger_of())
    first, ahead = ask(server, 1), ask(server, 2)
    server.dismiss(0)
    server.account(0, 1, 1, first.number, [Outcome(first.start, first.start + 3, Verdict.APPLIED)])
    server.account(0, 1, 2, ahead.number, [])
    assert (ledger.total, ledger.holders) == (Account(used=30), frozenset())
    server.shut(0)
    server.open(0, 2)
    again = [ask(server, number, incarnation=2) for number in (1, 2)]
    assert [lease[1:] for lease in again] == [(0, first.start + 3, first.stop), ahead[1:]]
