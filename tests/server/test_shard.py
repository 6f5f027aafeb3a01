import dataclasses
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from distbelief.chance import generator
from distbelief.errors import InvariantViolated
from distbelief.ports import ORIGIN, Capture, Push, Restore, SetLiving, Slice, Snapshot, Verdict, Work
from distbelief.server.admission import Asynchronous, Buffered, Decision, Paced
from distbelief.server.block import (
    CLOCK,
    COMMAND,
    NEXT_CLOCK,
    TERM,
    ShardSpec,
    examples_of,
    record_of,
    slot_of,
    updates_of,
)
from distbelief.server.rules import SGD, Adagrad, Adam, Rule
from distbelief.server.schedules import Steps
from distbelief.server.shard import Shard
from tests.shards import at, fence, living, make_push, make_shard, set_living

ONES = torch.ones(20)


@dataclasses.dataclass(frozen=True)
class NoOlderThan:
    """Refuses what is staler than a bound; halves the rate of what is stale at all."""

    versions: int
    round = 1
    lead = None

    def admit(self, staleness: int, held: int, living: int) -> Decision:
        if staleness > self.versions:
            return Decision(Verdict.TOO_OLD, f"{staleness} versions old")
        return Decision(Verdict.APPLIED, "young enough", 0.5 if staleness else 1.0)


# Versions, staleness and examples


def test_the_version_counts_applied_updates() -> None:
    shard = make_shard(torch.zeros(20))
    replies = [shard.push(make_push(ONES, n, version=shard.version)) for n in range(1, 4)]
    assert [reply.version for reply in replies] == [at(1), at(2), at(3)]
    assert (shard.version, shard.pushes) == (at(3), 3)
    assert torch.equal(shard.parameters, -3 * ONES)


def test_staleness_is_the_versions_since_the_fetch_and_is_kept_as_a_histogram() -> None:
    shard = make_shard(torch.zeros(20))
    stale = [shard.push(make_push(ONES, n, version=at(max(0, n - 3)))).staleness for n in range(1, 6)]
    assert stale == [0, 1, 2, 2, 2]
    assert shard.staleness[:4].tolist() == [1, 1, 3, 0]
    shard.push(make_push(ONES, 6, version=shard.version))
    assert int(shard.staleness.sum()) == 6
    assert shard.stalest == 2


def test_the_last_bin_of_the_histogram_holds_all_that_are_staler() -> None:
    shard = make_shard(torch.zeros(1))
    for n in range(1, 4101):
        shard.push(make_push(torch.zeros(1), n))
    assert shard.staleness[-1] == 4100 - 4095
    assert shard.stalest == 4099
    shard.check()


def test_a_fetch_copies_and_tells_the_version() -> None:
    shard = make_shard(torch.zeros(20))
    into = torch.empty(20)
    shard.push(make_push(ONES, 1))
    assert shard.fetch(into) == at(1)
    shard.push(make_push(ONES, 2))
    assert torch.equal(into, -ONES)


def test_a_schedule_sees_the_examples_of_all_replicas_that_were_used() -> None:
    shard = make_shard(torch.zeros(20), SGD(Steps({0: 1.0, 10: 0.5, 20: 0.25})), NoOlderThan(3), replicas=2)

    def rate_of(push: Push) -> float:
        before = shard.parameters[0].item()
        shard.push(push)
        return float(before - shard.parameters[0].item())

    assert rate_of(make_push(ONES, 1, replica=0, examples=6)) == 1.0
    assert rate_of(make_push(ONES, 1, replica=1, examples=6, version=at(1))) == 1.0
    assert rate_of(make_push(ONES, 2, replica=0, examples=6, version=at(2))) == 0.5
    assert rate_of(make_push(ONES, 2, replica=1, examples=99, version=at(-1))) == 0, "refused"
    assert rate_of(make_push(ONES, 3, replica=1, examples=6, version=at(3))) == 0.5
    assert rate_of(make_push(ONES, 4, replica=1, examples=6, version=at(4))) == 0.25


# At most once


def test_a_push_that_comes_again_changes_nothing() -> None:
    shard = make_shard(torch.zeros(20), Adam(0.1))
    for n in range(1, 4):
        shard.push(make_push(ONES, n))
    before = shard.snapshot()
    replies = [shard.push(make_push(ONES, n)) for n in range(1, 4)]
    assert [reply.verdict for reply in replies] == [Verdict.DUPLICATE, Verdict.DUPLICATE, Verdict.APPLIED]
    assert [reply.reason for reply in replies] == [*["seen before, and another one since"] * 2, "seen before"]
    after = shard.snapshot()
    assert torch.equal(before.numbers, after.numbers)
    assert all(torch.equal(before.vectors[name], after.vectors[name]) for name in before.vectors)


def test_a_new_incarnation_begins_anew_and_ends_the_old_one() -> None:
    shard = make_shard(torch.zeros(20))
    for n in range(1, 6):
        shard.push(make_push(ONES, n, incarnation=1))
    assert shard.push(make_push(ONES, 1, incarnation=2)).verdict is Verdict.APPLIED
    for n in (5, 6, 100):
        reply = shard.push(make_push(ONES, n, incarnation=1))
        assert (reply.verdict, reply.reason) == (Verdict.DUPLICATE, "its incarnation has been replaced")
    assert shard.push(make_push(ONES, 2, incarnation=2)).verdict is Verdict.APPLIED
    assert shard.version == at(7)


def test_replicas_number_their_pushes_independently() -> None:
    shard = make_shard(torch.zeros(20), replicas=3)
    for replica in range(3):
        assert shard.push(make_push(ONES, 1, replica=replica)).verdict is Verdict.APPLIED
    with pytest.raises(InvariantViolated, match="replica 3 has no slot among 3"):
        shard.push(make_push(ONES, 1, replica=3))


def test_a_push_without_anything_for_this_shard_is_an_update_that_moves_nothing() -> None:
    shard = make_shard(ONES)
    reply = shard.push(Push(0, 1, 1, ORIGIN, Work(1, 0, 1, 8), (), []))
    assert (reply.verdict, reply.version) == (Verdict.APPLIED, at(1))
    assert torch.equal(shard.parameters, ONES)


# Refusals


def test_a_refused_push_moves_nothing_and_is_known() -> None:
    shard = make_shard(torch.zeros(20), Adagrad(0.1), NoOlderThan(1))
    for n in range(1, 3):
        shard.push(make_push(ONES, n, version=at(n - 1)))
    before = shard.snapshot()
    reply = shard.push(make_push(ONES, 3, version=at(0), work=Work(9, 4, 6, 64)))
    assert (reply.verdict, reply.reason, reply.staleness) == (Verdict.TOO_OLD, "2 versions old", 2)
    assert not reply.verdict.used
    assert (shard.version, shard.pushes) == (at(2), 2)
    after = shard.snapshot()
    assert all(torch.equal(before.vectors[name], after.vectors[name]) for name in before.vectors)
    assert torch.equal(shard.staleness, torch.tensor([2, *[0] * 4095]))
    again = shard.push(make_push(ONES, 3, version=at(2)))
    assert (again.verdict, again.reason) == (Verdict.TOO_OLD, "seen before")
    assert shard.push(make_push(ONES, 2, version=at(2))).verdict is Verdict.DUPLICATE
    record = fence(shard, 0, 1)
    assert record is not None
    assert record == (3, Work(9, 4, 6, 64), Verdict.TOO_OLD, True)
    shard.check()


def test_the_policys_scale_multiplies_the_rate() -> None:
    shard = make_shard(torch.zeros(20), SGD(1.0), NoOlderThan(5))
    shard.push(make_push(ONES, 1, version=at(0)))
    shard.push(make_push(ONES, 2, version=at(0)))
    assert torch.equal(shard.parameters, torch.full((20,), -1.5))


# Rounds


def buffered(m: int, there: int, rule: Rule = SGD(1.0), replicas: int = 4) -> Shard:
    shard = make_shard(torch.zeros(20), rule, Buffered(m), replicas=replicas)
    set_living(shard, range(there))
    return shard


def test_the_mean_of_a_round_is_one_update() -> None:
    shard = buffered(3, 4)
    gradients = [torch.full((20,), value) for value in (1.0, 2.0, 6.0)]
    replies = [shard.push(make_push(g, 1, replica=r)) for r, g in enumerate(gradients)]
    assert [reply.verdict for reply in replies] == [Verdict.HELD, Verdict.HELD, Verdict.APPLIED]
    assert [reply.at_least for reply in replies] == [at(1), at(1), ORIGIN]
    assert (shard.version, shard.pushes) == (at(1), 3)
    assert torch.equal(shard.parameters, torch.full((20,), -3.0))


@pytest.mark.parametrize("rule", [SGD(0.1, momentum=0.9), Adagrad(0.1), Adam(0.1)], ids=["sgd", "adagrad", "adam"])
def test_rounds_of_m_are_plain_steps_with_the_mean(rule: Rule) -> None:
    """Also the synchronous baseline: m = N in equal order is training with the whole batch, to rounding."""
    chance = generator(1, "rounds")
    held, plain = buffered(4, 4, rule), make_shard(torch.zeros(20), rule)
    for step in range(1, 11):
        gradients = torch.randn(4, 20, generator=chance)
        for replica in range(4):
            held.push(make_push(gradients[replica], step, replica=replica, version=held.version))
        plain.push(make_push(gradients.mean(0), step))
    assert held.version == at(10)
    torch.testing.assert_close(held.parameters, plain.parameters, rtol=1e-5, atol=1e-6)


def test_what_is_late_for_its_round_is_dropped() -> None:
    shard = buffered(2, 3)
    for replica in range(2):
        shard.push(make_push(ONES, 1, replica=replica))
    reply = shard.push(make_push(100 * ONES, 1, replica=2, version=at(0)))
    assert (reply.verdict, reply.at_least) == (Verdict.LATE, ORIGIN)
    assert (shard.version, shard.pushes) == (at(1), 2)
    assert torch.equal(shard.parameters, -ONES)
    assert shard.push(make_push(ONES, 2, replica=2, version=at(1))).verdict is Verdict.HELD


@pytest.mark.parametrize("there", [0, 1, 2])
def test_a_round_that_no_one_else_can_fill_is_closed(there: int) -> None:
    shard = buffered(3, 3)
    for replica in range(2):
        shard.push(make_push((replica + 1) * ONES, 1, replica=replica))
    set_living(shard, range(3))
    assert shard.version == at(0)
    set_living(shard, range(there))
    assert (shard.version, shard.pushes) == (at(1), 2)
    assert torch.equal(shard.parameters, -ONES), "two of three move it by two thirds of their mean"
    set_living(shard, range(there))
    assert shard.version == at(1)
    shard.check()


@pytest.mark.parametrize("there", [[0], []], ids=["one living", "stopped"])
def test_a_round_of_one_push_moves_the_parameters_by_its_part(there: list[int]) -> None:
    shard = buffered(3, 3)
    set_living(shard, there)
    assert shard.push(make_push(3 * ONES, 1)).verdict is Verdict.APPLIED
    assert torch.equal(shard.parameters, -ONES)
    set_living(shard, [0], alone=True)
    shard.push(make_push(3 * ONES, 2, version=at(1)))
    assert torch.equal(shard.parameters, -4 * ONES), "a warm start takes whole steps"
    shard.check()


def test_a_round_of_more_than_there_are_replicas_is_the_mean_over_these() -> None:
    shard = buffered(9, 2, replicas=2)
    for replica in range(2):
        shard.push(make_push((1 + 2 * replica) * ONES, 1, replica=replica))
    assert torch.equal(shard.parameters, -2 * ONES)


def test_what_a_policy_holds_of_a_single_replica_is_applied_with_the_rest() -> None:
    @dataclasses.dataclass(frozen=True)
    class InPairs:
        round = 2
        lead = None

        def admit(self, staleness: int, held: int, living: int) -> Decision:
            return Decision(Verdict.APPLIED if held else Verdict.HELD, "")

    shard = make_shard(torch.zeros(20), SGD(1.0), InPairs(), replicas=1)
    verdicts = [shard.push(make_push(ONES, n)).verdict for n in (1, 2)]
    assert verdicts == [Verdict.HELD, Verdict.APPLIED]
    assert torch.equal(shard.parameters, -2 * ONES)


def test_a_round_leaves_nothing_for_the_next() -> None:
    shard = buffered(2, 2)
    for step in range(1, 4):
        for replica in range(2):
            shard.push(make_push(ONES, step, replica=replica, version=shard.version))
    assert torch.equal(shard.parameters, -3 * ONES)


def test_a_rounds_examples_count_when_it_is_closed() -> None:
    shard = buffered(2, 2, SGD(Steps({0: 1.0, 20: 0.5})))
    for step in range(1, 4):
        for replica in range(2):
            shard.push(make_push(ONES, step, replica=replica, version=shard.version, examples=5))
    assert torch.equal(shard.parameters, -2.5 * ONES)


def test_a_held_push_without_anything_for_this_shard_counts_as_nothing_in_the_mean() -> None:
    shard = buffered(2, 2)
    shard.push(Push(0, 1, 1, ORIGIN, Work(1, 0, 1, 8), (), []))
    shard.push(make_push(ONES, 1, replica=1))
    assert torch.equal(shard.parameters, -0.5 * ONES)


def test_parts_of_a_shard_are_added_where_they_belong() -> None:
    shard = buffered(2, 2)
    shard.push(Push(0, 1, 1, ORIGIN, Work(1, 0, 1, 8), (Slice(0, 4), Slice(10, 12)), [torch.ones(4), torch.ones(2)]))
    shard.push(Push(1, 1, 1, ORIGIN, Work(1, 0, 1, 8), (Slice(2, 12),), [torch.ones(10)]))
    expected = torch.zeros(20)
    expected[0:4] -= 0.5
    expected[10:12] -= 0.5
    expected[2:12] -= 0.5
    assert torch.equal(shard.parameters, expected)


# Snapshots


@pytest.mark.parametrize("rule", [SGD(0.1, momentum=0.9), Adagrad(0.1), Adam(0.1)], ids=["sgd", "adagrad", "adam"])
@pytest.mark.parametrize("admission", [Asynchronous(), Buffered(3)], ids=["asynchronous", "buffered"])
def test_a_restored_shard_goes_on_identically(rule: Rule, admission: Asynchronous | Buffered) -> None:
    chance = generator(2, "snapshot")
    shard, twin = (make_shard(torch.zeros(20), rule, admission) for _ in range(2))
    set_living(shard, range(4))

    def go_on(which: Shard, gradients: Tensor, first: int) -> list[Verdict]:
        pushes = (make_push(g, first + i // 3, replica=i % 3, version=which.version) for i, g in enumerate(gradients))
        return [which.push(push).verdict for push in pushes]

    go_on(shard, torch.randn(10, 20, generator=chance), 1)
    snapshot = shard.snapshot()
    assert updates_of(snapshot) == shard.version.updates
    assert 0 < examples_of(snapshot) <= 10
    twin.execute(Restore(1, snapshot, (), living(range(4))))
    gradients = torch.randn(9, 20, generator=chance)
    assert go_on(shard, gradients, 5) == go_on(twin, gradients, 5)
    a, b = shard.snapshot(), twin.snapshot()
    for snapshot in (a, b):
        snapshot.numbers[[TERM, COMMAND, NEXT_CLOCK, *(slot_of(replica) + CLOCK for replica in range(4))]] = 0
    assert torch.equal(a.numbers, b.numbers), "but for the term, in which clocks and commands begin anew"
    assert all(torch.equal(a.vectors[name], b.vectors[name]) for name in a.vectors)
    twin.check()


def test_a_snapshot_is_a_copy_and_knows_every_push() -> None:
    shard = make_shard(torch.zeros(20))
    shard.push(make_push(ONES, 1))
    snapshot = shard.snapshot()
    shard.push(make_push(ONES, 2))
    assert torch.equal(snapshot.vectors["parameters"], -ONES)
    restore(shard, snapshot)
    again = shard.push(make_push(ONES, 1))
    assert (again.verdict, again.reason, shard.version) == (Verdict.APPLIED, "seen before", at(1, term=1))
    assert shard.push(make_push(ONES, 2, version=shard.version)).verdict is Verdict.APPLIED


def test_a_capture_is_slices_of_vectors_and_the_account_at_one_instant() -> None:
    shard = make_shard(torch.zeros(20), Adagrad(0.1))
    shard.push(make_push(ONES, 1))
    into = {name: torch.full((20,), -9.0) for name in shard.vectors}
    expected = {name: torch.cat([into[name][:12], vector[5:13]]) for name, vector in shard.vectors.items()}
    numbers = shard.execute(Capture({name: [(Slice(5, 13), vector[12:])] for name, vector in into.items()}))
    shard.push(make_push(ONES, 2))
    assert all(torch.equal(into[name], vector) for name, vector in expected.items())
    assert isinstance(numbers, Snapshot)
    assert numbers.vectors == {}, "they lie where they were wanted"
    assert (updates_of(numbers), examples_of(numbers)) == (1, 1)
    assert record_of(numbers, 0, 1) == (1, make_push(ONES, 1).work, Verdict.APPLIED, True)
    assert record_of(numbers, 0, 2) is None


# Its account


def test_a_replica_that_never_pushed_has_no_record() -> None:
    shard = make_shard(torch.zeros(20))
    assert fence(shard, 0, 1) is None
    shard.push(make_push(ONES, 1, incarnation=1))
    assert fence(shard, 0, 2) is None
    assert fence(shard, 1, 1) is None


def test_the_record_is_the_last_push_with_its_work() -> None:
    shard = buffered(2, 2)
    for n in range(1, 6):
        shard.push(make_push(ONES, n, version=shard.version, work=Work(n, 10 * n, 10 * n + 3, 96, refused=n)))
    assert fence(shard, 0, 1) == (5, Work(5, 50, 53, 96, 5, 0), Verdict.HELD, True)


@pytest.mark.parametrize(
    ("rule", "admission", "names"),
    [
        (SGD(0.1), Asynchronous(), ["parameters"]),
        (SGD(0.1, momentum=0.9), Asynchronous(), ["parameters", "momentum"]),
        (Adagrad(0.1), Buffered(1), ["parameters", "sum"]),
        (Adam(0.1), Buffered(2), ["parameters", "mean", "square", "round"]),
    ],
    ids=["sgd", "momentum", "adagrad", "adam in rounds"],
)
def test_a_shard_holds_no_vector_that_it_does_not_need(
    rule: Rule, admission: Asynchronous | Buffered, names: list[str]
) -> None:
    spec = ShardSpec(1000, torch.float64, rule, admission, 2)
    assert list(spec.vectors) == names
    assert spec.nbytes == 8 * spec.numbers + len(names) * 8000
    assert spec.numbers % 512 == 0


# Deaths that are announced, repetitions, pacing, restorations


def test_nothing_is_taken_from_an_incarnation_that_is_fenced() -> None:
    """Its messages may still be under way; those of the next one are not affected."""
    shard = make_shard(torch.zeros(20))
    shard.push(make_push(ONES, 1))
    assert fence(shard, 0, 1) == (1, make_push(ONES, 1).work, Verdict.APPLIED, True)
    for push in (make_push(ONES, 1), make_push(ONES, 2), make_push(ONES, 3)):
        reply = shard.push(push)
        assert (reply.verdict, reply.reason) == (Verdict.DUPLICATE, "its incarnation has been replaced")
    assert fence(shard, 1, 4) is None, "one that has never pushed here"
    assert shard.push(make_push(ONES, 1, replica=1, incarnation=4)).verdict is Verdict.DUPLICATE
    assert shard.push(make_push(ONES, 1, incarnation=2)).verdict is Verdict.APPLIED
    assert shard.version == at(2)
    shard.check()


def test_a_held_push_that_comes_again_is_told_of_its_round() -> None:
    shard = buffered(2, 2)
    first = shard.push(make_push(ONES, 1))
    assert (first.verdict, first.at_least) == (Verdict.HELD, at(1))
    assert shard.push(make_push(ONES, 1))[:3] == (Verdict.HELD, "seen before", 0)
    shard.push(make_push(ONES, 1, replica=1))
    again = shard.push(make_push(ONES, 1))
    assert (again.verdict, again.version, again.at_least) == (Verdict.HELD, at(1), at(1)), "the round is closed by now"
    assert shard.version == at(1)


def paced(steps: int, replicas: Sequence[int]) -> Shard:
    shard = make_shard(torch.zeros(20), SGD(1.0), Paced(steps))
    set_living(shard, replicas)
    return shard


def batches(stop: int, start: int = 0) -> Work:
    return Work(1, start, stop, 8 * (stop - start))


def test_a_paced_fetch_waits_for_the_slowest_living_replica() -> None:
    shard = paced(2, [0, 1])
    assert shard.reached == at(0)
    replies = [shard.push(make_push(ONES, n, work=batches(n, n - 1))) for n in range(1, 6)]
    assert [reply.at_least for reply in replies] == [at(steps) for steps in (0, 0, 1, 2, 3)]
    assert all(reply.verdict is Verdict.APPLIED for reply in replies)
    assert shard.reached == at(0)
    assert shard.push(make_push(ONES, 1, replica=1, work=batches(4))).at_least == at(2), "a push of several batches"
    assert shard.reached == at(4)
    shard.check()


def test_who_does_not_live_holds_nobody_up() -> None:
    shard = paced(0, [0, 1, 2])
    for n in range(1, 4):
        shard.push(make_push(ONES, n, work=batches(n, n - 1)))
        shard.push(make_push(ONES, n, replica=1, work=batches(n, n - 1)))
    assert shard.reached == at(0)
    set_living(shard, [0, 1])
    assert shard.reached == at(3)
    set_living(shard, [])
    assert shard.reached > at(10**15)
    set_living(shard, [2])
    assert shard.reached == at(0), "alone, it goes at its own pace"
    shard.check()


def test_a_newcomer_begins_where_the_slowest_is() -> None:
    shard = paced(1, [0])
    for n in range(1, 8):
        shard.push(make_push(ONES, n, work=batches(n, n - 1)))
    set_living(shard, [0, 1])
    assert shard.reached == at(7)
    shard.push(make_push(ONES, 1, replica=1, incarnation=3, work=batches(1)))
    assert shard.reached == at(7)
    shard.push(make_push(ONES, 8, work=batches(8, 7)))
    assert shard.reached == at(8)


def restore(shard: Shard, snapshot: Snapshot, *, term: int = 1, replicas: Sequence[int] = ()) -> None:
    shard.execute(Restore(term, snapshot, (), living(replicas)))


def test_what_was_computed_in_another_term_is_refused() -> None:
    shard = make_shard(torch.zeros(20), Adam(0.1))
    for n in range(1, 4):
        shard.push(make_push(ONES, n, version=shard.version))
    snapshot = shard.snapshot()
    late = make_push(ONES, 5, version=shard.push(make_push(ONES, 4, version=shard.version)).version)
    restore(shard, snapshot)
    assert shard.version == at(3, term=1)
    assert shard.reached > late.version, "who waits for what was to come before waits no longer"
    reply = shard.push(late)
    assert (reply.verdict, reply.reason) == (Verdict.TOO_OLD, "computed in another term of the shard")
    assert reply.staleness == shard.push(late).staleness == 0, "it came from ahead of where the shard is now"
    assert shard.version.updates == 3
    assert shard.push(make_push(ONES, 6, version=at(3, term=2))).verdict is Verdict.TOO_OLD, "nor from a later one"
    assert shard.push(make_push(ONES, 7, version=shard.version)).verdict is Verdict.APPLIED
    twin = make_shard(torch.zeros(20), Adam(0.1))
    for n in range(1, 5):
        twin.push(make_push(ONES, n, version=twin.version))
    assert torch.equal(shard.parameters, twin.parameters), "Adam's step counts the updates"
    assert updates_of(shard.snapshot()) == 4
    shard.check()


def test_a_restoration_for_a_term_that_has_begun_has_no_effect() -> None:
    """It was sent again, or comes late: what was done since the first one stays."""
    shard = make_shard(torch.zeros(20))
    snapshot = shard.snapshot()
    for term in (1, 2):
        shard.push(make_push(ONES, term, version=shard.version))
        restore(shard, snapshot, term=term)
        assert shard.version == at(0, term)
    shard.push(make_push(ONES, 3, version=shard.version))
    before = shard.snapshot()
    for term in (2, 1, 0):
        restore(shard, snapshot, term=term)
    assert shard.version == at(1, term=2)
    assert torch.equal(shard.snapshot().numbers, before.numbers)
    assert torch.equal(shard.parameters, -ONES)


def test_a_restoration_brings_the_deaths_and_the_living_that_the_snapshot_does_not_know() -> None:
    shard = make_shard(torch.zeros(20), SGD(1.0), Buffered(3))
    set_living(shard, range(3))
    shard.push(make_push(ONES, 1))
    snapshot = shard.snapshot()
    shard.execute(Restore(1, snapshot, (0, 2, 0, 0), living([0])))
    assert shard.version == at(1, term=1), "who is alone closes the round that was open"
    for incarnation in (1, 2):
        push = make_push(ONES, 1, replica=1, incarnation=incarnation, version=shard.version)
        assert shard.push(push).verdict is Verdict.DUPLICATE
    push = make_push(ONES, 1, replica=1, incarnation=3, version=shard.version)
    assert shard.push(push).verdict is Verdict.APPLIED
    shard.check()


def test_a_new_term_takes_commands_from_the_first_number_on() -> None:
    shard = make_shard(torch.zeros(20), SGD(1.0), Buffered(2))
    shard.execute(SetLiving(9, frozenset([0, 1]), False))
    shard.execute(Restore(1, shard.snapshot(), (), SetLiving(1, frozenset([0, 1]), False)))
    assert shard.push(make_push(ONES, 1, version=shard.version)).verdict is Verdict.HELD
    shard.execute(SetLiving(2, frozenset([0]), False))
    assert shard.version == at(1, term=1)


def test_a_shard_that_begins_anew_is_in_the_term_that_it_is_given() -> None:
    """As where a run is resumed: what was computed for the run before belongs to no version of this one."""
    spec = ShardSpec(20, torch.float32, SGD(1.0), Asynchronous(), 2)
    shard = Shard(spec, torch.zeros(spec.nbytes, dtype=torch.uint8))
    shard.initialise_(torch.zeros(20), updates=7, examples=50, term=3)
    assert (shard.version, shard.reached, shard.pushes) == (at(7, term=3), at(7, term=3), 7)
    assert shard.push(make_push(ONES, 1, version=at(7, term=2))).verdict is Verdict.TOO_OLD
    assert shard.push(make_push(ONES, 2, version=shard.version)).version == at(8, term=3)


def test_a_command_that_was_overtaken_has_no_effect() -> None:
    """Late or repeated: whom the newest command named is who lives."""
    shard = make_shard(torch.zeros(20), SGD(1.0), Buffered(2))
    older, newer = living([0]), living([0, 1])
    for command in (newer, older, newer):
        shard.execute(command)
        shard.push(make_push(ONES, 1))
        assert shard.version == at(0), "the round waits for two"
    shard.execute(living([0]))
    assert shard.version == at(1)
    shard.check()


def test_a_paced_shard_at_which_nobody_has_lived_is_sound_and_holds_nobody_up() -> None:
    shard = make_shard(torch.zeros(20), SGD(1.0), Paced(1))
    shard.check()
    assert shard.reached > at(10**9)


def test_a_restoration_puts_paced_replicas_level() -> None:
    shard = paced(1, [0, 1])
    snapshot = shard.snapshot()
    for n in range(1, 9):
        reply = shard.push(make_push(ONES, n, work=batches(n, n - 1)))
    restore(shard, snapshot, replicas=[0, 1])
    assert shard.reached > reply.at_least
    assert shard.push(make_push(ONES, 9, version=shard.version, work=batches(9, 8))).at_least <= shard.reached
    shard.check()


# The average


def test_the_average_steps_towards_the_parameters_after_each_update_where_these_moved() -> None:
    shard = make_shard(torch.ones(20), SGD(1.0), average=0.75)
    assert torch.equal(shard.vectors["average"], torch.ones(20))
    left_out = make_push(torch.ones(4), 1)
    shard.push(left_out)
    assert torch.equal(shard.parameters, torch.cat([torch.zeros(4), torch.ones(16)]))
    assert torch.equal(shard.vectors["average"], torch.cat([torch.full((4,), 0.75), torch.ones(16)]))
    shard.push(make_push(torch.ones(20), 2))
    expected = torch.cat([torch.full((4,), 0.75).lerp(torch.full((4,), -1.0), 0.25), torch.full((16,), 0.75)])
    assert torch.equal(shard.vectors["average"], expected)


def test_a_round_is_one_step_of_the_average() -> None:
    shard = make_shard(torch.ones(20), SGD(1.0), Buffered(2), average=0.75)
    set_living(shard, [0, 1])
    shard.push(make_push(torch.ones(20), 1))
    assert torch.equal(shard.vectors["average"], torch.ones(20))
    shard.push(make_push(torch.ones(20), 1, replica=1))
    assert torch.equal(shard.vectors["average"], torch.full((20,), 0.75))


def test_a_shard_without_an_average_keeps_no_vector_for_it() -> None:
    assert "average" not in make_shard(torch.ones(20)).vectors


def test_the_average_is_in_a_snapshot_and_comes_back() -> None:
    shard = make_shard(torch.ones(20), SGD(1.0), average=0.75)
    snapshot = shard.snapshot()
    shard.push(make_push(torch.ones(20), 1))
    shard.execute(Restore(1, snapshot, (0,) * 4, living([])))
    assert torch.equal(shard.vectors["average"], torch.ones(20))
