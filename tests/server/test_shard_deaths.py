"""A pusher may die anywhere inside a push: whoever takes the lock next finds out how far it came."""

import dataclasses
import itertools
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from distbelief.ports import Capture, Reply, Snapshot, Verdict, Work
from distbelief.server.admission import Admission, Asynchronous, Buffered
from distbelief.server.block import ShardSpec, record_of, updates_of
from distbelief.server.rules import SGD, Rule, Vectors
from distbelief.server.shard import Shard
from tests.shards import at, fence, make_push, set_living

ELEMENTS = 20
ONES = torch.ones(ELEMENTS)


class Death(BaseException):
    """Stands for SIGKILL: what raises it does nothing more."""


@dataclasses.dataclass(frozen=True)
class DiesHalfWay:
    """Plain SGD that dies when half of the parameters are changed."""

    lr = 1.0
    state: dict[str, float] = dataclasses.field(default_factory=dict)

    def update_(
        self, parameters: Vectors, gradients: Vectors, state: Sequence[Vectors], step: Tensor, rate: float
    ) -> None:
        half = len(parameters[0]) // 2
        parameters[0][:half] -= rate * gradients[0][:half]
        raise Death


class Header:
    """A shard's numbers, of which only so many more can be written before the writer dies."""

    def __init__(self, numbers: "memoryview[int]", writes: int) -> None:
        self._numbers = numbers
        self._writes = writes

    def __getitem__(self, key: Any) -> Any:
        return self._numbers[key]

    def __setitem__(self, key: int, value: int) -> None:
        if self._writes == 0:
            raise Death
        self._writes -= 1
        self._numbers[key] = value


class SharedShard:
    """The memory of one shard, and the processes that map it."""

    def __init__(self, admission: Admission, *, replicas: int = 4) -> None:
        self.spec = ShardSpec(ELEMENTS, torch.float32, SGD(1.0), admission, replicas)
        self.memory = torch.zeros(self.spec.nbytes, dtype=torch.uint8)
        self.map().initialise_(torch.zeros(ELEMENTS))

    def map(self, *, rule: Rule | None = None, writes: int | None = None) -> Shard:
        """The shard as another process sees it; with `writes`, one that dies before the next write to the account."""
        shard = Shard(dataclasses.replace(self.spec, rule=rule or self.spec.rule), self.memory)
        if writes is not None:
            shard._header = shard._register.numbers = Header(shard._header, writes)  # type: ignore[assignment]
        return shard


def test_a_death_inside_the_kernel_is_recovered_by_the_next_push() -> None:
    shared = SharedShard(Asynchronous())
    survivor = shared.map()
    survivor.push(make_push(ONES, 1, replica=1))
    with pytest.raises(Death):
        shared.map(rule=DiesHalfWay()).push(make_push(ONES, 1, replica=0, version=at(1), work=Work(7, 3, 5, 64, 32)))

    assert survivor.push(make_push(ONES, 2, replica=1, version=at(1))).version == at(3), "the torn push is one update"
    assert fence(survivor, 0, 1) == (1, Work(7, 3, 5, 64, 32), Verdict.APPLIED, False)
    assert survivor.push(make_push(ONES, 1, replica=0, version=at(1))).verdict is Verdict.DUPLICATE
    assert survivor.parameters.tolist() == [-3.0] * 10 + [-2.0] * 10
    assert (survivor.version, survivor.pushes) == (at(3), 3)
    survivor.check()


def test_only_the_torn_push_is_torn() -> None:
    shared = SharedShard(Asynchronous())
    survivor = shared.map()
    with pytest.raises(Death):
        shared.map(rule=DiesHalfWay()).push(make_push(ONES, 1))
    survivor.push(make_push(ONES, 1, replica=1))
    survivor.push(make_push(ONES, 1, incarnation=2))
    for replica, incarnation in ((1, 1), (0, 2)):
        record = fence(survivor, replica, incarnation)
        assert record is not None
        assert record.whole


@pytest.mark.parametrize("look", ["fence", "snapshot", "capture", "set_living", "check", "push"])
def test_whoever_takes_the_lock_first_recovers(look: str) -> None:
    shared = SharedShard(Asynchronous())
    with pytest.raises(Death):
        shared.map(rule=DiesHalfWay()).push(make_push(ONES, 1))
    survivor = shared.map()
    match look:
        case "fence":
            fence(survivor, 0, 1)
        case "snapshot":
            assert updates_of(survivor.snapshot()) == 1
        case "capture":
            numbers = survivor.execute(Capture({}))
            assert isinstance(numbers, Snapshot)
            assert updates_of(numbers) == 1
        case "set_living":
            set_living(survivor, range(1))
        case "check":
            survivor.check()
        case _:
            survivor.push(make_push(ONES, 1))
    assert survivor.version == at(1)
    record = fence(survivor, 0, 1)
    assert record is not None
    assert not record.whole


def test_a_death_in_the_kernel_that_closes_a_round_ends_the_round() -> None:
    shared = SharedShard(Buffered(2))
    survivor = shared.map()
    set_living(survivor, range(2))
    survivor.push(make_push(ONES, 1, replica=1))
    with pytest.raises(Death):
        shared.map(rule=DiesHalfWay()).push(make_push(3 * ONES, 1, replica=0))
    reply = survivor.push(make_push(ONES, 2, replica=1, version=at(1)))
    assert (reply.verdict, reply.version) == (Verdict.HELD, at(1))
    assert survivor.parameters.tolist() == [-2.0] * 10 + [0.0] * 10
    survivor.check()


def test_a_death_at_the_opening_of_a_round_leaves_nothing_of_the_round_before() -> None:
    """Between the mark and the clearing of the sum: the next push must not be added to the last round's mean."""
    shared = SharedShard(Buffered(2))
    survivor = shared.map()
    set_living(survivor, range(2))
    for replica in range(2):
        survivor.push(make_push(-100 * ONES, 1, replica=replica))
    assert survivor.parameters.tolist() == [100.0] * ELEMENTS
    dying = shared.map()

    def die(*_: object) -> None:
        raise Death

    dying._hold = die  # type: ignore[method-assign, assignment]
    with pytest.raises(Death):
        dying.push(make_push(ONES, 2, replica=0, version=at(1)))
    assert survivor.push(make_push(ONES, 2, replica=1, version=at(1))).verdict is Verdict.APPLIED
    assert survivor.parameters.tolist() == [99.5] * ELEMENTS
    survivor.check()


def test_a_controller_that_dies_while_it_closes_a_round_leaves_a_sound_shard() -> None:
    shared = SharedShard(Buffered(2))
    survivor = shared.map()
    set_living(survivor, range(2))
    survivor.push(make_push(ONES, 1))
    with pytest.raises(Death):
        set_living(shared.map(rule=DiesHalfWay()), range(1))
    survivor.check()
    assert survivor.version == at(1)
    record = fence(survivor, 0, 1)
    assert record is not None
    assert record.whole


@pytest.mark.parametrize("incarnation", [1, 2], ids=["same incarnation", "new incarnation"])
@pytest.mark.parametrize("held", [False, True], ids=["applied", "held"])
def test_at_every_mark_a_push_that_dies_is_begun_or_not_begun_and_never_applied_twice(
    held: bool, incarnation: int
) -> None:
    """The pusher dies before each of its writes to the account in turn; the push is then offered once more."""
    fates = set()
    for writes in itertools.count():
        shared = SharedShard(Buffered(2) if held else Asynchronous())
        survivor = shared.map()
        set_living(survivor, range(2))
        survivor.push(make_push(ONES, 1, replica=0, incarnation=1, work=Work(1, 0, 1, 8)))
        before = survivor.version
        sequence = 2 if incarnation == 1 else 1
        replica = 0 if not held else 1
        work = Work(2, 1, 2, 8)
        push = make_push(ONES, sequence, replica=replica, incarnation=incarnation, version=before, work=work)
        if held:  # the other one closed the first round, so this one is held in the second
            survivor.push(make_push(ONES, 1, replica=1, incarnation=1, version=before))
            before = survivor.version
            push = push._replace(version=before, sequence=2 if incarnation == 1 else 1)
        try:
            reply: Reply | None = shared.map(writes=writes).push(push)
        except Death:
            reply = None

        again = survivor.push(push)
        record = record_of(survivor.snapshot(), replica, incarnation)
        assert record is not None
        begun = again.reason == "seen before"
        survivor.check()
        moved = survivor.pushes - (2 if held else 1)
        assert moved == 1, f"after {writes} writes"
        assert again.verdict is (Verdict.HELD if held else Verdict.APPLIED)
        if held:
            total = int(survivor.vectors["round"][0])
        else:
            total = int(-survivor.parameters[0]) - 1
        whole = record.whole
        assert total == 1 or (begun and not whole and total == 0), f"after {writes} writes"
        fates.add((begun, whole))
        if reply is not None:
            assert reply.verdict.used
            break
    assert (True, False) in fates, "some deaths tear the push"
    assert (True, True) in fates
    assert any(not begun for begun, _ in fates), "some deaths come before it has begun"


@pytest.mark.parametrize("m", [1, 3], ids=["asynchronous", "rounds of 3"])
@pytest.mark.parametrize("seed", range(3))
def test_stress_with_deaths_anywhere(m: int, seed: int) -> None:
    """Each replica owns one element, to which each of its pushes adds 1: the element counts the replica's pushes."""
    chance = random.Random(seed)
    shared = SharedShard(Buffered(m))
    survivor = shared.map()
    set_living(survivor, range(4))
    incarnations, sequences = [1] * 4, [0] * 4
    sure, torn = [0] * 4, [0] * 4
    for _ in range(400):
        r = chance.randrange(4)
        gradient = torch.zeros(ELEMENTS)
        gradient[r] = 1.0
        version = at(survivor.version.updates - (chance.random() < 0.1))
        if chance.random() < 0.1 and sequences[r]:
            push = make_push(gradient, sequences[r], replica=r, incarnation=incarnations[r], version=version)
            assert survivor.push(push).reason == "seen before"
            continue
        sequences[r] += 1
        push = make_push(gradient, sequences[r], replica=r, incarnation=incarnations[r], version=version)
        dying = shared.map(writes=chance.randrange(30)) if chance.random() < 0.3 else survivor
        try:
            sure[r] += dying.push(push).verdict.used
        except Death:
            record = fence(survivor, r, incarnations[r])
            if record is not None and record.sequence == sequences[r] and record.verdict.used:
                sure[r] += record.whole
                torn[r] += not record.whole
            incarnations[r] += 1
            sequences[r] = 0
            if chance.random() < 0.5:
                set_living(survivor, range(chance.randrange(1, 5)))
        survivor.check()
    set_living(survivor, range(0))
    assert sum(torn) > 0
    assert survivor.pushes == sum(sure) + sum(torn)
    if m == 1:
        for r in range(4):
            assert sure[r] <= -int(survivor.parameters[r]) <= sure[r] + torn[r]
    assert torch.equal(survivor.parameters[4:], torch.zeros(ELEMENTS - 4))
