import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from distbelief.allocation import Account
from distbelief.downpour import replica
from distbelief.downpour.ledger import Ledger
from distbelief.downpour.method import Downpour
from distbelief.downpour.replica import DownpourReplica, LocalStep
from distbelief.engines.simulated.loop import simulate
from distbelief.errors import Diverged
from distbelief.ports import ORIGIN, Answer, Command, Gradient, Outcome, Push, Reply, Verdict, Version
from distbelief.server.admission import Asynchronous, Buffered, Decision
from distbelief.server.client import Client, read_scalars
from distbelief.server.host import ShardHost
from distbelief.server.layout import Layout
from distbelief.server.rules import SGD, Adagrad, Adam, Rule
from tests.reads import Reads
from tests.replicas import BATCH, Compute, Computed, Portions, Recording, run_replica, run_replicas, toward
from tests.shards import at, flat_layout, linked, make_shards, vector_of

LAYOUT = flat_layout(16)
TARGETS = (1.0, -2.0, 0.5, 4.0, -1.0, 3.0, 2.5)


def method(**changes: Any) -> Downpour:
    return Downpour(**({"optimizer": SGD(0.125)} | changes))


def record(work: Portions, compute: Compute = toward(*TARGETS), *, overlap: int = 0, **changes: Any) -> Recording:
    return run_replica(method(**changes), work, compute, layout=LAYOUT, overlap=overlap)


def batches(push: Push) -> tuple[int, int]:
    return push.work.start, push.work.stop


# The listing


@pytest.mark.parametrize("overlap", [0, 1])
@pytest.mark.parametrize(("n_fetch", "n_push"), [(1, 1), (1, 3), (2, 3), (3, 2), (4, 1), (5, 5)])
def test_fetches_and_pushes_begin_where_the_listing_says(n_fetch: int, n_push: int, overlap: int) -> None:
    recording = record(Portions((0, 11)), n_fetch=n_fetch, n_push=n_push, overlap=overlap)
    assert [event.step for event in recording.of("fetch")] == [s for s in range(11) if s % n_fetch == 0]
    last = [s for s in range(11) if s % n_push == 0]
    ends = [s + 1 for s in last] + ([11] if last[-1] != 10 else [])
    assert [batches(push) for push in recording.pushes] == list(pairwise([0, *ends]))


@pytest.mark.parametrize("overlap", [0, 1])
def test_a_push_is_the_sum_of_the_gradients_since_the_last(overlap: int) -> None:
    gradients = [torch.full((16,), float(2**batch)) for batch in range(8)]
    recording = record(Portions((0, 8)), lambda v, e, b: [gradients[b].clone()], n_push=3, overlap=overlap)
    sums = [push.gradients[0][0].item() for push in recording.pushes]
    assert sums == [1, 2 + 4 + 8, 16 + 32 + 64, 128]
    assert [push.work.examples for push in recording.pushes] == [BATCH, 3 * BATCH, 3 * BATCH, BATCH]


def test_steps_go_on_from_one_portion_to_the_next_and_nothing_accrued_crosses() -> None:
    recording = record(Portions((0, 3), (5, 8)), n_fetch=4, n_push=2)
    assert [event.step for event in recording.of("fetch")] == [0, 4]
    assert [batches(push) for push in recording.pushes] == [(0, 1), (1, 3), (5, 7), (7, 8)]
    assert [push.work.lease for push in recording.pushes] == [1, 1, 2, 2]


def test_sequences_count_from_one_without_a_gap() -> None:
    recording = record(Portions((0, 3), (3, 7)), n_push=2)
    assert [push.sequence for push in recording.pushes] == list(range(1, len(recording.pushes) + 1))


# Without overlap


def test_without_overlap_everything_waits_for_what_comes_before() -> None:
    recording = record(Portions((0, 3)))
    turn = ["fetch", "fetched", "compute", "computed", "push", "pushed"]
    assert [event.what for event in recording.events] == [*turn * 3, "over"]
    assert recording.events[-1].time == 3 * (0.5 + 1 + 0.5)


def test_without_overlap_each_gradient_is_taken_at_the_newest_parameters() -> None:
    recording = record(Portions((0, 5)))
    w = torch.zeros(16)
    for seen, target in zip(recording.seen, TARGETS, strict=False):
        assert torch.equal(seen, w)
        w = w - 0.125 * (w - target)
    assert [push.version for push in recording.pushes] == [at(n) for n in range(5)]


# With overlap


def test_with_overlap_a_fetch_is_installed_one_step_later() -> None:
    recording = record(Portions((0, 6)), overlap=1)
    server = [torch.zeros(16)]
    for push in recording.pushes:
        server.append(server[-1] - 0.125 * push.gradients[0])
    fetched = [event.detail for event in recording.of("fetched")]
    # The fetch of step 0 is waited for; step 1 still uses it; from then on, step s uses the fetch that began at s - 1.
    used = [fetched[0], *fetched[:5]]
    assert [push.version for push in recording.pushes] == used
    for seen, version in zip(recording.seen, used, strict=True):
        assert isinstance(version, Version)
        assert torch.equal(seen, server[version.updates])


def test_with_overlap_the_network_runs_beside_the_compute() -> None:
    recording = run_replica(
        method(), Portions((0, 10)), toward(*TARGETS), layout=LAYOUT, overlap=1, compute_s=1.0, delay_s=0.4
    )
    assert recording.events[-1].time == pytest.approx(0.8 + 10 * 1.0 + 0.8)


def test_with_overlap_one_push_is_under_way_at_a_time() -> None:
    recording = run_replica(
        method(), Portions((0, 4), (4, 8)), toward(*TARGETS), layout=LAYOUT, overlap=1, compute_s=0.1, delay_s=1.0
    )
    assert [event.what for event in recording.of("push", "pushed")] == ["push", "pushed"] * 8


def test_with_overlap_a_portion_is_accounted_for_when_its_last_push_is_answered() -> None:
    work = Portions((0, 3))
    recording = run_replica(method(), work, toward(1.0), layout=LAYOUT, overlap=1, compute_s=0.1, delay_s=1.0)
    assert work.outcomes == [[Outcome(0, 3, Verdict.APPLIED)]]
    assert len(recording.of("pushed")) == 3


# The local step


@pytest.mark.parametrize(
    ("rule", "reference"),
    [
        (SGD(0.1), lambda p: torch.optim.SGD(p, 0.1, fused=True)),
        (SGD(0.1, momentum=0.9), lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, fused=True)),
        (
            Adagrad(0.1),
            lambda p: torch.optim.Adagrad(p, 0.1, eps=0, initial_accumulator_value=2**-126, fused=True),
        ),
        (Adam(0.1), lambda p: torch.optim.Adam(p, 0.1, fused=True)),
    ],
    ids=["sgd", "momentum", "adagrad", "adam"],
)
def test_between_fetches_a_replica_trains_on_its_own(rule: Rule, reference: Any) -> None:
    recording = record(Portions((0, 6)), n_fetch=6, n_push=6, local_optimizer=rule)
    w = torch.zeros(16)
    optimizer = reference([w])
    for seen, target in zip(recording.seen, TARGETS, strict=False):
        assert torch.equal(seen, w)
        w.grad = w - target
        optimizer.step()


def test_the_local_rule_is_the_shards_unless_another_is_given() -> None:
    own = record(Portions((0, 4)), n_fetch=4, optimizer=SGD(0.25))
    given = record(Portions((0, 4)), n_fetch=4, optimizer=SGD(0.5), local_optimizer=SGD(0.25))
    assert all(torch.equal(a, b) for a, b in zip(own.seen, given.seen, strict=True))
    assert not torch.equal(own.shards[0].parameters, given.shards[0].parameters)


def test_a_fetch_replaces_what_was_done_locally() -> None:
    recording = record(Portions((0, 6)), n_fetch=3, local_optimizer=SGD(100.0))
    server = torch.zeros(16)
    for push in recording.pushes[:3]:
        server -= 0.125 * push.gradients[0]
    assert torch.equal(recording.seen[3], server)


def test_there_is_no_local_step_where_every_step_begins_with_a_fetch() -> None:
    recording = record(Portions((0, 4)), n_fetch=1, local_optimizer=SGD(100.0))
    assert method(n_fetch=1, local_optimizer=SGD(100.0)).local_rule is None
    assert max(seen.abs().max().item() for seen in recording.seen) < 5


def test_a_parameter_that_took_no_part_takes_no_local_step() -> None:
    layout = flat_layout(16)
    vector = torch.ones(16)
    step = LocalStep(SGD(0.1, momentum=0.9, weight_decay=0.5), layout, vector)
    step(Gradient([None], torch.zeros(()), 8), 0)
    assert torch.equal(vector, torch.ones(16))


def test_a_local_step_takes_its_schedule_by_the_examples_of_the_run() -> None:
    """Not by those of its own replica, of which there may be many."""
    asked: list[int] = []

    def lr(examples: int) -> float:
        asked.append(examples)
        return 0.1

    record(Portions((0, 6)), n_fetch=3, n_push=3, local_optimizer=SGD(lr))
    assert asked == [0, 0, 0, 3 * BATCH, 3 * BATCH, 3 * BATCH]


def test_a_local_step_has_the_groups_of_its_rule() -> None:
    layout = Layout.of([(name, torch.zeros(16)) for name in ("0.weight", "0.bias", "1.weight")])
    vector = torch.ones(48)
    step = LocalStep(SGD(0.1, groups={"*.bias": {"lr": 1.0}}), layout, vector)
    step(Gradient([torch.ones(16), torch.ones(16), None], torch.zeros(()), 8), 0)
    step(Gradient([torch.ones(16), None, None], torch.zeros(()), 8), 0)
    assert [round(view[0].item(), 6) for view in layout.views(vector)] == [0.8, 0.0, 1.0]


def test_the_norm_is_looked_at_seldom_but_where_it_is_known_anyway(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica, "_NORM_S", 10.0)
    seldom = record(Portions((0, 40)), overlap=0).progress
    assert 1 < seldom.norms < 20
    assert seldom.norm > 0
    assert record(Portions((0, 40)), overlap=0, clip_norm=1000.0).progress.norms == 40


# Gradients that are not finite


def poisoned(*bad: int) -> Compute:
    """As `toward`, but NaN in some batches, and wherever the parameters are not finite."""

    def compute(vector: Tensor, epoch: int, batch: int) -> list[Tensor | None]:
        gradient = vector - TARGETS[batch % len(TARGETS)]
        return [gradient * math.nan if batch in bad else gradient]

    return compute


@pytest.mark.parametrize("overlap", [0, 1])
def test_a_gradient_that_is_not_finite_is_refused_and_counted(overlap: int) -> None:
    work = Portions((0, 6))
    recording = record(work, poisoned(2, 3), overlap=overlap)
    assert work.outcomes == [
        [Outcome(0, 2, Verdict.APPLIED), Outcome(2, 4, Verdict.NOT_FINITE), Outcome(4, 6, Verdict.APPLIED)]
    ]
    assert [batches(push) for push in recording.pushes] == [(0, 1), (1, 2), (4, 5), (5, 6)]
    assert [push.sequence for push in recording.pushes] == [1, 2, 3, 4]
    assert (recording.progress.pushes, recording.progress.rejected) == (4, 2)
    assert recording.pushes[2].work.refused == 2 * BATCH


@pytest.mark.parametrize("rule", [SGD(0.1), SGD(0.1, momentum=0.9), Adagrad(0.1), Adam(0.1)])
def test_one_poisoned_batch_does_not_poison_the_replica(rule: Rule) -> None:
    """The local step must not take it either: NaN would stay in the parameters until the next fetch, and in the rule's
    state for good, and every gradient after it would be refused."""
    work = Portions((0, 30))
    record(work, poisoned(2), n_fetch=30, local_optimizer=rule)
    assert [outcome for outcome in work.outcomes[0] if outcome.verdict is Verdict.NOT_FINITE] == [
        Outcome(2, 3, Verdict.NOT_FINITE)
    ]


def test_twenty_refusals_in_a_row_are_divergence() -> None:
    with pytest.raises(Diverged, match="20 gradients in a row were not finite"):
        record(Portions((0, 40)), poisoned(*range(3, 23)))


def test_nineteen_refusals_in_a_row_are_not() -> None:
    work = Portions((0, 45))
    record(work, poisoned(*range(3, 22), *range(23, 42)))
    assert len(work.outcomes[0]) == 5


def test_divergence_leaves_no_push_and_no_fetch_under_way() -> None:
    with pytest.raises(Diverged):
        record(Portions((0, 40)), poisoned(*range(1, 40)), overlap=1)


@pytest.mark.parametrize("clip_norm", [None, 0.5])
@pytest.mark.parametrize(("n_fetch", "n_push"), [(1, 1), (3, 1), (1, 3), (3, 3)])
def test_a_step_waits_once_for_what_it_reads(
    monkeypatch: pytest.MonkeyPatch, n_fetch: int, n_push: int, clip_norm: float | None
) -> None:
    """On a GPU each read waits for it, so that loss, finiteness and norm are read together, by `read_scalars`."""
    together: list[int] = []
    reads = Reads()

    def counted(scalars: Sequence[Tensor]) -> list[float]:
        before, read = reads.count, read_scalars(scalars)
        together.append(reads.count - before)
        return read

    monkeypatch.setattr("distbelief.server.client.read_scalars", counted)
    monkeypatch.setattr("distbelief.downpour.replica.read_scalars", counted)
    with reads:
        # The last step pushes, so that there is nothing left to be read at the end of the lease.
        record(Portions((0, 7)), n_fetch=n_fetch, n_push=n_push, clip_norm=clip_norm)
    assert len(together) == 7
    assert min(together) >= 1
    assert reads.count == sum(together)


# Other endings


@pytest.mark.parametrize("overlap", [0, 1])
@pytest.mark.parametrize("answers", [10, 11], ids=["before a fetch", "while it fetched"])
def test_a_replica_that_is_told_to_stop_pushes_what_it_has_and_gives_the_rest_back(answers: int, overlap: int) -> None:
    asked = iter([False] * answers + [True] * 10)
    work = Portions((0, 10), (10, 20))
    recording = run_replica(
        method(n_push=3), work, toward(1.0), layout=LAYOUT, overlap=overlap, stopping=lambda: next(asked)
    )
    assert work.outcomes == [[Outcome(0, 5, Verdict.APPLIED)], []]
    assert [batches(push) for push in recording.pushes] == [(0, 1), (1, 4), (4, 5)]


class DropsEveryThird:
    round = 1
    lead = None

    def __init__(self) -> None:
        self._pushes = 0

    def admit(self, staleness: int, held: int, living: int) -> Decision:
        self._pushes += 1
        return Decision(Verdict.APPLIED if self._pushes % 3 else Verdict.TOO_OLD, "every third")


def test_what_the_shards_turn_away_is_told_and_carried_along() -> None:
    work = Portions((0, 5))
    recording = record(work, admission=DropsEveryThird())
    assert work.outcomes == [
        [Outcome(0, 2, Verdict.APPLIED), Outcome(2, 3, Verdict.TOO_OLD), Outcome(3, 5, Verdict.APPLIED)]
    ]
    assert (recording.progress.pushes, recording.progress.rejected) == (4, 1)
    assert [push.work.dropped for push in recording.pushes] == [0, 0, 0, BATCH, BATCH]


def test_progress_is_told_after_every_batch_and_lease() -> None:
    seen = []
    shards = make_shards(LAYOUT, torch.zeros(16))
    vector = torch.zeros(16)

    async def main() -> None:
        replica = DownpourReplica(
            method(),
            client=Client(LAYOUT, [linked(ShardHost(shards[0]), lambda: 0.0)], replica=0, incarnation=1),
            source=Computed(toward(1.0), vector, 1.0, lambda *_: None),
            work=Portions((0, 3)),
            parameters=vector,
            watch=lambda p: seen.append((p.steps, p.examples, p.pushes)),
        )
        await replica.run()

    simulate(main(), seed=0)
    # Once more when the lease has ended, for what was settled after its last batch.
    assert seen == [(1, 8, 1), (2, 16, 2), (3, 24, 3), (3, 24, 3)]


@pytest.mark.parametrize("overlap", [0, 1])
def test_a_link_that_fails_ends_the_replica_with_its_error(overlap: int) -> None:
    class Broken:
        answers_at_once = False

        async def fetch(self, into: Tensor, at_least: Version = ORIGIN) -> Version:
            return ORIGIN

        async def push(self, push: Push) -> Reply:
            raise ConnectionResetError("gone")

        def transferring(self) -> bool:
            return False

        async def execute(self, command: Command) -> Answer:
            raise ConnectionResetError("gone")

    async def main() -> None:
        vector = torch.zeros(16)
        replica = DownpourReplica(
            method(),
            client=Client(LAYOUT, [Broken()], replica=0, incarnation=1),
            source=Computed(toward(1.0), vector, 1.0, lambda *_: None),
            work=Portions((0, 3)),
            parameters=vector,
            overlap=overlap,
        )
        await replica.run()

    with pytest.RaisesGroup(ConnectionResetError, allow_unwrapped=True, flatten_subgroups=True):
        simulate(main(), seed=0)


# Several replicas


def run_together(
    replicas: int, admission: Asynchronous | Buffered, *, overlap: int, seed: int, n_push: int = 1
) -> tuple[Account, list[int], Tensor]:
    """Replicas of different speed share two epochs of 100 batches; returns what became of them."""
    layout = flat_layout(64, 2)
    ledger = Ledger(
        examples=100 * BATCH,
        batch_size=BATCH,
        replicas=replicas,
        epochs=2,
        quorum=replicas if admission.round > 1 else 1,
    )
    recordings = run_replicas(
        method(admission=admission, n_push=n_push),
        ledger,
        toward(*TARGETS),
        layout=layout,
        replicas=replicas,
        seed=seed,
        overlap=overlap,
    )
    assert ledger.finished
    assert ledger.epochs_ended == 2
    shards = recordings[0].shards
    return ledger.total, [shard.pushes for shard in shards], vector_of(layout, shards)


@pytest.mark.parametrize("overlap", [0, 1])
@pytest.mark.parametrize("n_push", [1, 4])
def test_replicas_of_different_speed_use_every_example_once(overlap: int, n_push: int) -> None:
    account, pushes, _ = run_together(3, Asynchronous(), overlap=overlap, n_push=n_push, seed=0)
    assert account == Account(used=2 * 100 * BATCH)
    assert pushes[0] == pushes[1] >= 200 / n_push


@pytest.mark.parametrize("m", [2, 3])
def test_in_rounds_every_example_is_used_or_dropped_and_nobody_waits_for_ever(m: int) -> None:
    account, _, _ = run_together(3, Buffered(m), overlap=0, seed=0)
    assert account.total == 2 * 100 * BATCH
    assert (account.dropped > 2 * BATCH) == (m < 3), "with all in a round, only the others' last pushes can be late"


def test_equal_seeds_give_equal_runs_and_others_differ() -> None:
    first, second, other = (run_together(3, Asynchronous(), overlap=1, seed=seed)[2] for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_what_refused_batches_left_in_the_model_is_put_back() -> None:
    """All batches of a push that is refused, and no other's."""
    layout = flat_layout(4)
    recording = run_replica(
        Downpour(replicas=1, batch_size=BATCH, n_push=2, n_fetch=2, optimizer=SGD(0.1)),
        Portions((0, 7)),
        lambda vector, epoch, batch: [vector * 0 + (float("nan") if batch == 2 else 1.0)],
        layout=layout,
    )
    # Pushed are batch 0, 1 and 2, 3 and 4, and so on.
    assert [event.step for event in recording.of("undo")] == [3]
