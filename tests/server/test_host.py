"""A shard's host: it answers, keeps the fetches that wait, and says nothing once its shard is lost."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from distbelief.ports import ORIGIN, Capture, Command, Fence, Push, Reply, Restore, Slice, Snapshot, Verdict, Version
from distbelief.server.admission import Buffered
from distbelief.server.host import SMALL, ShardHost, copy_vectors
from distbelief.server.rules import SGD, Adagrad
from tests.shards import at, living, make_push, make_shard, set_living

ONES = torch.ones(16)


class Answers:
    """Keeps what a host answers, and how many bytes it says that these are."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self.sizes: list[int] = []

    def __call__(self, value: Any, nbytes: int) -> None:
        self.values.append(value)
        self.sizes.append(nbytes)


class Watching:
    """Writes down what a host tells its observer."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def pushed(self, shard: int, push: Push, reply: Reply) -> None:
        self.told.append((shard, push.sequence, reply.verdict))

    def saw(self, shard: int, version: Version) -> None:
        self.told.append((shard, version))

    def asked(self, shard: int, machine: str, at_least: Version) -> None:
        self.told.append((shard, machine, at_least))

    def obeyed(self, shard: int, command: Command, living: int, fenced: Sequence[int]) -> None:
        self.told.append((shard, command, living, fenced))


def rounds_of_two() -> ShardHost:
    host = ShardHost(make_shard(torch.zeros(16), SGD(1.0), Buffered(2)))
    set_living(host, [0, 1])
    return host


def test_a_fetch_is_answered_with_a_copy_and_its_version() -> None:
    host, answers = ShardHost(make_shard(torch.zeros(16))), Answers()
    host.push(make_push(ONES, 1), Answers())
    host.fetch(ORIGIN, "replica 0", answers)
    host.push(make_push(ONES, 2), Answers())
    host.fetch(ORIGIN, "replica 0", answers)
    assert [version for version, _ in answers.values] == [at(1), at(2)]
    assert [vector[0].item() for _, vector in answers.values] == [-1.0, -2.0], "what was answered does not change"
    assert answers.sizes == [ONES.nbytes] * 2


def test_who_fetches_the_same_version_is_given_the_same_copy() -> None:
    host, answers = ShardHost(make_shard(torch.zeros(16))), Answers()
    for replica in range(3):
        host.fetch(ORIGIN, f"replica {replica}", answers)
    assert answers.values[0] is answers.values[1] is answers.values[2]


def test_a_fetch_waits_until_a_push_lets_it_go() -> None:
    host, fetched, pushed = rounds_of_two(), Answers(), Answers()
    host.fetch(at(1), "replica 0", fetched)
    host.push(make_push(ONES, 1), pushed)
    assert (fetched.values, list(host.waiting)) == ([], ["replica 0"])
    host.push(make_push(ONES, 1, replica=1), pushed)
    assert [version for version, _ in fetched.values] == [at(1)]
    assert host.waiting == {}
    assert [reply.verdict for reply in pushed.values] == [Verdict.HELD, Verdict.APPLIED]
    assert pushed.sizes == [SMALL] * 2


def test_a_fetch_waits_until_a_command_lets_it_go() -> None:
    host, fetched = rounds_of_two(), Answers()
    host.push(make_push(ONES, 1), Answers())
    host.fetch(at(1), "replica 0", fetched)
    assert fetched.values == []
    set_living(host, [0])
    assert [version for version, _ in fetched.values] == [at(1)]


def test_a_fetch_that_is_made_again_takes_the_place_of_the_first() -> None:
    """Whose answer would come beside the second's, and cost the network a vector for nothing."""
    host, first, second = rounds_of_two(), Answers(), Answers()
    host.fetch(at(1), "replica 0", first)
    host.fetch(at(1), "replica 0", second)
    for replica in range(2):
        host.push(make_push(ONES, 1, replica=replica), Answers())
    assert (len(first.values), len(second.values)) == (0, 1)


def test_a_fetch_waits_until_a_push_past_the_host_is_seen() -> None:
    """As a process that maps the shard makes it."""
    host, fetched = ShardHost(make_shard(torch.zeros(16))), Answers()
    host.fetch(at(1), "replica 0", fetched)
    host.shard.push(make_push(ONES, 1))
    assert fetched.values == []
    host.look()
    assert [version for version, _ in fetched.values] == [at(1)]
    host.look()
    assert len(fetched.values) == 1


def test_a_caller_that_has_gone_is_never_answered() -> None:
    host, gone, there = ShardHost(make_shard(torch.zeros(16))), Answers(), Answers()
    host.fetch(at(1), "replica 0", gone)
    host.fetch(at(1), "replica 1", there)
    for caller in ("replica 0", "replica 7"):
        host.forget(caller)
    host.push(make_push(ONES, 1), Answers())
    assert (len(gone.values), len(there.values)) == (0, 1)


def test_an_answer_may_make_others_be_forgotten() -> None:
    """As one that cannot be sent, since its caller's machine has gone with all of its callers."""
    host, called = ShardHost(make_shard(torch.zeros(16))), []

    def ready(caller: str, other: str) -> None:
        called.append(caller)
        host.forget(other)

    for caller, other in (("a", "b"), ("b", "a")):
        host.wait(at(1), caller, partial(ready, caller, other))
    host.push(make_push(ONES, 1), Answers())
    assert called == ["a"]


def test_a_capture_answers_with_everything_and_the_receiver_takes_its_slices() -> None:
    """What travels are the shard's own vectors: the receiver's tensors are on another machine."""
    host, answers = ShardHost(make_shard(torch.zeros(16), Adagrad(1.0))), Answers()
    host.push(make_push(ONES, 1), Answers())
    low, high = torch.full((4,), 9.0), torch.full((2,), 9.0)
    command = Capture({"parameters": [(Slice(0, 4), low), (Slice(14, 16), high)]})
    host.execute(command, answers)
    assert low.tolist() == [9.0] * 4, "not before the answer is there"
    snapshot = answers.values[0]
    assert answers.sizes == [2 * ONES.nbytes]
    numbers = copy_vectors(snapshot, command)
    assert numbers.vectors == {}
    assert torch.equal(numbers.numbers, host.shard.snapshot().numbers)
    assert torch.equal(torch.cat([low, high]), host.shard.parameters[:6])


def test_a_host_without_its_shard_answers_nothing_until_it_is_restored() -> None:
    host, waiting, answers = rounds_of_two(), Answers(), Answers()
    snapshot = host.shard.snapshot()
    host.push(make_push(ONES, 1), Answers())
    host.fetch(at(1), "replica 0", waiting)
    host.lose()
    host.fetch(ORIGIN, "replica 1", answers)
    host.push(make_push(ONES, 1, replica=1), answers)
    for command in (living([0]), Fence(0, 1), Capture({})):
        host.execute(command, answers)
    assert answers.values == []
    assert host.waiting == {}, "nobody is kept waiting there"

    host.await_restoration(1)
    host.execute(Restore(1, snapshot, (0, 1, 0, 0), living([0, 1])), answers)
    assert answers.values == [None]
    assert host.shard.version == at(0, term=1)
    host.fetch(ORIGIN, "replica 0", answers)
    host.execute(Fence(0, 1), answers)
    host.push(make_push(ONES, 1, replica=1, version=at(0, term=1)), answers)
    (version, vector), record, reply = answers.values[1:]
    assert (version, vector.tolist(), record) == (at(0, term=1), [0.0] * 16, None)
    assert reply.verdict is Verdict.DUPLICATE, "its incarnation is fenced"
    assert waiting.values == []


def test_a_restoration_for_a_machine_that_has_died_since_is_not_obeyed() -> None:
    """Nor what comes between: the shard would obey it, and forget it when it is restored."""
    host, answers = rounds_of_two(), Answers()
    earlier = Restore(1, host.shard.snapshot(), (), living([0, 1]))
    host.lose()
    host.execute(earlier, answers)
    host.await_restoration(2)
    for command in (earlier, Fence(0, 1), living([0])):
        host.execute(command, answers)
    assert answers.values == []
    assert host.shard.reached < ORIGIN, "who maps its memory waits"
    host.execute(earlier._replace(term=2), answers)
    assert answers.values == [None]
    assert host.shard.version == at(0, term=2)
    host.execute(earlier, answers)
    assert answers.values == [None, None], "one that comes late finds that it was overtaken"
    assert host.shard.version == at(0, term=2)


def test_a_restoration_lets_go_who_waited_for_an_earlier_term() -> None:
    host, fetched = rounds_of_two(), Answers()
    host.fetch(at(5), "replica 0", fetched)
    host.execute(Restore(1, host.shard.snapshot(), (), living([0, 1])), Answers())
    assert [version for version, _ in fetched.values] == [at(0, term=1)]


def test_the_observer_is_told_of_every_push_fetch_and_version() -> None:
    watching = Watching()
    host = ShardHost(make_shard(torch.zeros(16)), 3, watching)
    host.fetch(ORIGIN, "replica 0", Answers())
    host.push(make_push(ONES, 1), Answers())
    host.push(make_push(ONES, 1), Answers())
    host.fetch(ORIGIN, "replica 0", Answers())
    asked, applied = (3, "replica 0", ORIGIN), (3, 1, Verdict.APPLIED)
    assert watching.told == [asked, (3, at(0)), applied, applied, asked, (3, at(1))]


def test_the_observer_is_told_of_every_command_and_of_the_living_and_the_dead_then() -> None:
    watching = Watching()
    host = ShardHost(make_shard(torch.zeros(16), replicas=2), 3, watching)
    two, one, fence = living([0, 1]), living([0]), Fence(0, 1)
    for command in (two, fence, one, two):
        host.execute(command, Answers())
    assert watching.told == [(3, two, 2, [0, 0]), (3, fence, 2, [1, 0]), (3, one, 1, [1, 0]), (3, two, 1, [1, 0])]


def test_a_snapshot_that_a_host_answers_with_owns_its_tensors() -> None:
    host, answers = ShardHost(make_shard(torch.zeros(16))), Answers()
    host.execute(Capture({}), answers)
    host.push(make_push(ONES, 1), Answers())
    snapshot = answers.values[0]
    assert isinstance(snapshot, Snapshot)
    assert not snapshot.vectors["parameters"].any()
