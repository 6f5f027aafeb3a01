import asyncio
import math

import pytest
import torch
from torch import Tensor

from distbelief.chance import generator
from distbelief.engines.simulated.loop import simulate
from distbelief.ports import ORIGIN, Answer, Command, Gradient, Push, Reply, Slice, Verdict, Version
from distbelief.server.admission import Buffered
from distbelief.server.client import Client, FrozenGradient, HandOver, read_scalars, verdict_of
from distbelief.server.host import ShardHost
from distbelief.server.layout import Layout
from distbelief.server.rules import SGD
from tests.shards import NO_WORK, at, flat_layout, linked, make_client, make_push, make_shards, set_living, vector_of

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")),
]
LAYOUT = Layout.of([("a", torch.zeros(5, 3)), ("b", torch.zeros(40)), ("c", torch.zeros(()))], 3)


def gradient(*tensors: Tensor | None) -> Gradient:
    return Gradient(list(tensors), torch.zeros(()), 1)


def versions(*updates: int) -> tuple[Version, ...]:
    return tuple(map(at, updates))


def only(frozen: FrozenGradient) -> Tensor:
    (tensor,) = frozen.tensors
    assert tensor is not None
    return tensor


# Hand-over


def test_gradients_are_summed_until_they_are_taken() -> None:
    hand_over = HandOver()
    for value in (1.0, 2.0, 4.0):
        hand_over.accrue(gradient(torch.full((3,), value)), versions(0))
    assert only(hand_over.take()).tolist() == [7.0] * 3
    hand_over.accrue(gradient(torch.ones(3)), versions(0))
    assert only(hand_over.take()).tolist() == [1.0] * 3


def test_the_first_gradient_is_not_copied() -> None:
    first = torch.ones(3)
    hand_over = HandOver()
    hand_over.accrue(gradient(first), versions(0))
    assert only(hand_over.take()) is first


def test_nothing_is_shared_after_the_hand_over() -> None:
    """The listing of the paper clears the accrued gradient inside the asynchronous push, and so can lose one."""
    hand_over = HandOver()
    hand_over.accrue(gradient(torch.ones(3)), versions(0))
    hand_over.accrue(gradient(torch.ones(3)), versions(0))
    pushed = hand_over.take()
    hand_over.accrue(gradient(torch.full((3,), 100.0)), versions(1))
    hand_over.accrue(gradient(torch.full((3,), 100.0)), versions(2))
    assert only(pushed).tolist() == [2.0] * 3
    assert pushed.versions == versions(0)
    assert only(hand_over.take()).data_ptr() != only(pushed).data_ptr()


def test_the_versions_are_those_of_the_oldest_gradient() -> None:
    hand_over = HandOver()
    for fetched in (versions(3, 7), versions(4, 9), versions(5, 9)):
        hand_over.accrue(gradient(torch.ones(3)), fetched)
    assert hand_over.take().versions == versions(3, 7)
    hand_over.accrue(gradient(torch.ones(3)), versions(6, 9))
    assert hand_over.take().versions == versions(6, 9)


def test_a_parameter_is_in_the_push_if_it_took_part_in_any_batch() -> None:
    hand_over = HandOver()
    hand_over.accrue(gradient(None, torch.ones(2), None), versions(0))
    hand_over.accrue(gradient(torch.ones(1), None, None), versions(0))
    hand_over.accrue(gradient(torch.ones(1), torch.ones(2), None), versions(0))
    tensors = hand_over.take().tensors
    assert [None if t is None else t.tolist() for t in tensors] == [[2.0], [2.0, 2.0], None]


def test_a_push_may_hold_nothing() -> None:
    for clip_norm in (None, 1.0):
        hand_over = HandOver(clip_norm)
        hand_over.accrue(gradient(None, None), versions(0))
        assert hand_over.take()[:3] == ([None, None], versions(0), True)


@pytest.mark.parametrize("clip_norm", [None, 1.0])
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 1])
def test_a_gradient_is_refused_whole(clip_norm: float | None, poison: float, place: int) -> None:
    tensors = [torch.ones(4), torch.ones(7)]
    tensors[place][-1] = poison
    hand_over = HandOver(clip_norm)
    hand_over.accrue(gradient(*tensors), versions(0))
    assert not hand_over.take().finite


def test_infinities_of_both_signs_do_not_cancel() -> None:
    for tensors in ([torch.tensor([math.inf, -math.inf])], [torch.tensor([math.inf]), torch.tensor([-math.inf])]):
        hand_over = HandOver()
        hand_over.accrue(gradient(*tensors), versions(0))
        assert not hand_over.take().finite


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_finite_gradient_is_not_refused_for_its_sum_or_its_norm(dtype: torch.dtype) -> None:
    most = torch.finfo(dtype).max
    for tensor in (torch.full((5,), most, dtype=dtype), torch.tensor([most, -most], dtype=dtype)):
        hand_over = HandOver()
        hand_over.accrue(gradient(tensor.clone()), versions(0))
        frozen = hand_over.take()
        assert frozen.finite
        assert torch.equal(only(frozen), tensor)


def test_a_norm_beyond_float32_is_clipped() -> None:
    hand_over = HandOver(clip_norm=1.0)
    hand_over.accrue(gradient(torch.tensor([3e30, 4e30])), versions(0))
    frozen = hand_over.take()
    assert frozen.finite
    torch.testing.assert_close(only(frozen), torch.tensor([0.6, 0.8]))


def test_a_norm_beyond_float64_cannot_be_clipped() -> None:
    hand_over = HandOver(clip_norm=1.0)
    hand_over.accrue(gradient(torch.tensor([3e300, 4e300], dtype=torch.float64)), versions(0))
    assert not hand_over.take().finite


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_what_was_read_of_one_gradient_is_not_taken_for_the_next(clip_norm: float | None) -> None:
    hand_over = HandOver(clip_norm)
    hand_over.accrue(gradient(torch.ones(1)), versions(0))
    assert hand_over.read(torch.tensor(7.0)) == [7.0]
    assert hand_over.finite
    hand_over.accrue(gradient(torch.tensor([math.nan])), versions(0))
    assert not hand_over.take().finite
    hand_over.accrue(gradient(torch.ones(1)), versions(0))
    assert hand_over.read() == []
    assert hand_over.take().finite


@pytest.mark.parametrize("device", DEVICES)
def test_scalars_are_read_whatever_their_types(device: str) -> None:
    scalars = [torch.tensor(0.5, dtype=t, device=device) for t in (torch.float32, torch.float64, torch.bfloat16)]
    assert read_scalars(scalars) == [0.5] * 3
    assert read_scalars(scalars[1:2]) == [0.5]
    assert read_scalars([]) == []


def test_the_poison_of_one_batch_does_not_reach_the_next_push() -> None:
    hand_over = HandOver()
    hand_over.accrue(gradient(torch.tensor([math.nan])), versions(0))
    hand_over.accrue(gradient(torch.ones(1)), versions(0))
    assert not hand_over.take().finite
    hand_over.accrue(gradient(torch.ones(1)), versions(0))
    assert hand_over.take().finite


def test_the_norm_is_read_where_it_is_wanted_or_needed() -> None:
    for clip_norm, wanted in ((None, True), (1.3, False), (100.0, False)):
        hand_over = HandOver(clip_norm)
        hand_over.accrue(gradient(torch.tensor([3.0]), torch.tensor([4.0])), versions(0))
        assert hand_over.read(torch.tensor(7.0), norm=wanted) == [7.0]
        assert hand_over.take().norm == pytest.approx(5.0), "before it is clipped"
    assert HandOver(tensors=[torch.tensor([3.0])]).take().norm is None


def test_the_norm_of_a_sum_is_that_of_its_mean() -> None:
    hand_over = HandOver()
    for _ in range(2):
        hand_over.accrue(Gradient([torch.tensor([30.0, 40.0])], torch.zeros(()), 5, torch.tensor(10.0)), versions(0))
    hand_over.read(norm=True)
    assert hand_over.take().norm == pytest.approx(10.0)


def test_a_push_is_clipped_to_the_norm_of_the_whole() -> None:
    tensors = [torch.tensor([3.0, 0.0]), torch.tensor([[4.0], [12.0]]), None]
    hand_over = HandOver(clip_norm=1.3)
    hand_over.accrue(gradient(*tensors), versions(0))
    frozen = hand_over.take()
    flat = torch.cat([t.reshape(-1) for t in frozen.tensors if t is not None])
    torch.testing.assert_close(flat, torch.tensor([0.3, 0.0, 0.4, 1.2]))


def test_what_is_within_the_norm_is_left_to_the_bit() -> None:
    tensor = torch.randn(50, generator=generator(0, "clip"))
    hand_over = HandOver(clip_norm=1000.0)
    hand_over.accrue(gradient(tensor.clone()), versions(0))
    assert torch.equal(only(hand_over.take()), tensor)


def test_the_sum_is_clipped_and_not_its_parts() -> None:
    hand_over = HandOver(clip_norm=1.0)
    hand_over.accrue(gradient(torch.tensor([30.0])), versions(0))
    hand_over.accrue(gradient(torch.tensor([-29.5])), versions(0))
    assert only(hand_over.take()).tolist() == [0.5]


# The client


def test_a_push_reaches_every_shard_and_a_fetch_brings_it_back() -> None:
    vector = torch.zeros(LAYOUT.length)
    shards = make_shards(LAYOUT, vector)
    client = make_client(LAYOUT, shards)
    chance = generator(0, "client")
    tensors = [torch.randn(entry.shape, generator=chance) for entry in LAYOUT.entries]

    async def main() -> tuple[tuple[Version, ...], list[Reply], tuple[Version, ...]]:
        first = await client.fetch(vector)
        replies = await client.push(FrozenGradient([t.flatten() for t in tensors], first, True), NO_WORK)
        return first, replies, await client.fetch(vector)

    first, replies, second = asyncio.run(main())
    assert first == versions(0, 0, 0)
    assert second == versions(1, 1, 1)
    assert [reply.verdict for reply in replies] == [Verdict.APPLIED] * 3
    for view, tensor in zip(LAYOUT.views(vector), tensors, strict=True):
        assert torch.equal(view, -tensor)
    assert client.fetched_bytes == 2 * vector.nbytes
    assert client.pushed_bytes == 4 * LAYOUT.parameters


def test_a_parameter_that_took_no_part_is_not_sent() -> None:
    start = torch.ones(LAYOUT.length)
    shards = make_shards(LAYOUT, start, SGD(0.1, weight_decay=0.5))
    client = make_client(LAYOUT, shards)
    frozen = FrozenGradient([None, torch.ones(40), None], versions(0, 0, 0), True)
    replies = asyncio.run(client.push(frozen, NO_WORK))
    assert [shard.version for shard in shards] == [at(1)] * 3, "the push is known everywhere"
    assert all(reply.verdict is Verdict.APPLIED for reply in replies)
    a, b, c = LAYOUT.views(vector_of(LAYOUT, shards))
    assert torch.equal(a, torch.ones(5, 3))
    assert c == 1
    assert (b < 1).all()
    assert client.pushed_bytes == 160


def test_a_gradient_that_is_not_contiguous_lands_where_it_belongs() -> None:
    layout = Layout.of([("w", torch.zeros(6, 7))], 2)
    shards = make_shards(layout, torch.zeros(layout.length))
    tensor = torch.arange(42.0).reshape(7, 6).t()
    hand_over = HandOver()
    hand_over.accrue(gradient(tensor), versions(0, 0))
    asyncio.run(make_client(layout, shards).push(hand_over.take(), NO_WORK))
    assert torch.equal(layout.views(vector_of(layout, shards))[0], -tensor)


class Watched:
    """A link that writes down what passes, and answers as it is told."""

    answers_at_once = True

    def __init__(self, shard: int, log: list[tuple[str, int]], at_least: Version = ORIGIN) -> None:
        self.shard = shard
        self.log = log
        self.at_least = at_least
        self.waited_for: list[Version] = []
        self.pushes: list[Push] = []

    async def fetch(self, into: Tensor, at_least: Version = ORIGIN) -> Version:
        self.log.append(("fetch", self.shard))
        self.waited_for.append(at_least)
        return at(10 + self.shard)

    async def push(self, push: Push) -> Reply:
        self.log.append(("push", self.shard))
        self.pushes.append(push)
        return Reply(Verdict.HELD, "held", 0, at(10), self.at_least)

    def transferring(self) -> bool:
        return False

    async def execute(self, command: Command) -> Answer:
        raise NotImplementedError


def watched(replica: int = 0, at_least: tuple[int, int, int] = (0, 0, 0)) -> tuple[Client, list[Watched]]:
    log: list[tuple[str, int]] = []
    links = [Watched(shard, log, at(least)) for shard, least in enumerate(at_least)]
    return Client(LAYOUT, links, replica=replica, incarnation=6), links


PARCEL = FrozenGradient([torch.zeros(entry.size) for entry in LAYOUT.entries], versions(4, 5, 6), True)


def test_a_push_carries_who_and_which_and_from_what_version() -> None:
    client, links = watched(replica=2)
    for _ in range(3):
        asyncio.run(client.push(PARCEL, NO_WORK._replace(examples=8)))
    for shard, link in enumerate(links):
        assert [(p.replica, p.incarnation, p.sequence, p.version) for p in link.pushes] == [
            (2, 6, sequence, at(4 + shard)) for sequence in (1, 2, 3)
        ]
        assert link.pushes[0].work.examples == 8


def test_the_slices_of_whole_pushes_are_one_object() -> None:
    """A shard finds its views by them, and to compare equal tuples anew in every push would cost."""
    client, links = watched()
    for _ in range(2):
        asyncio.run(client.push(PARCEL, NO_WORK))
    for link in links:
        assert link.pushes[0].slices is link.pushes[1].slices
    assert links[0].pushes[0].slices == (Slice(0, 15), Slice(16, links[0].pushes[0].slices[1].stop))


def test_each_replica_begins_at_another_shard() -> None:
    for replica in range(4):
        client, links = watched(replica)
        asyncio.run(client.fetch(torch.zeros(LAYOUT.length)))
        asyncio.run(client.push(PARCEL, NO_WORK))
        turn = [(replica + i) % 3 for i in range(3)]
        assert links[0].log == [("fetch", shard) for shard in turn] + [("push", shard) for shard in turn]


def test_the_next_fetch_waits_for_what_the_reply_said_shard_by_shard() -> None:
    client, links = watched(at_least=(0, 11, 12))
    into = torch.zeros(LAYOUT.length)
    assert asyncio.run(client.fetch(into)) == versions(10, 11, 12)
    asyncio.run(client.push(PARCEL, NO_WORK))
    asyncio.run(client.fetch(into))
    assert [link.waited_for for link in links] == [[ORIGIN, at(least)] for least in (0, 11, 12)]


def test_a_fetch_really_waits_for_the_round() -> None:
    layout = flat_layout(64, 2)
    shards = make_shards(layout, torch.zeros(64), SGD(1.0), Buffered(2))
    hosts = [ShardHost(shard) for shard in shards]

    async def replica(number: int, start_s: float) -> tuple[float, float]:
        client = Client(layout, [linked(h, lambda: 0.0) for h in hosts], replica=number, incarnation=1)
        into = torch.zeros(64)
        fetched = await client.fetch(into)
        await asyncio.sleep(start_s)
        await client.push(FrozenGradient([torch.ones(64)], fetched, True), NO_WORK)
        assert await client.fetch(into) == versions(1, 1)
        return asyncio.get_running_loop().time(), into.sum().item()

    async def main() -> list[tuple[float, float]]:
        for host in hosts:
            set_living(host, [0, 1])
        return list(await asyncio.gather(replica(0, 1.0), replica(1, 5.0)))

    assert simulate(main(), seed=0) == [(5.0, -64.0), (5.0, -64.0)]


def test_who_was_turned_away_somewhere_waits_nowhere() -> None:
    """Rounds are each shard's own. If one that comes late for a round here waited for the one there, two replicas could
    wait for each other, at two shards, for ever."""
    layout = flat_layout(64, 2)
    shards = make_shards(layout, torch.zeros(64), SGD(1.0), Buffered(2))
    for shard in shards:
        set_living(shard, [0, 1])
    for replica in range(2):
        shards[0].push(make_push(torch.ones(32), 1, replica=replica))
    hosts = [ShardHost(shard, number) for number, shard in enumerate(shards)]

    async def main() -> tuple[Version, ...]:
        links = [linked(host, lambda: 1.0) for host in hosts]
        client = Client(layout, links, replica=0, incarnation=2)
        replies = await client.push(FrozenGradient([torch.ones(64)], versions(0, 0), True), NO_WORK)
        assert [reply.verdict for reply in replies] == [Verdict.LATE, Verdict.HELD]
        return await client.fetch(torch.zeros(64))

    assert simulate(main(), seed=0) == versions(1, 0)


def test_shards_are_asked_side_by_side_where_links_take_time() -> None:
    layout = flat_layout(64, 4)
    hosts = [ShardHost(shard) for shard in make_shards(layout, torch.zeros(64))]
    client = Client(layout, [linked(h, lambda: 1.0) for h in hosts], replica=0, incarnation=1)

    async def main() -> float:
        fetched = await client.fetch(torch.zeros(64))
        await client.push(FrozenGradient([torch.ones(64)], fetched, True), NO_WORK)
        return asyncio.get_running_loop().time()

    assert simulate(main(), seed=0) == 4.0


@pytest.mark.parametrize(
    ("verdicts", "whole"),
    [
        ([Verdict.APPLIED, Verdict.APPLIED], Verdict.APPLIED),
        ([Verdict.LATE, Verdict.APPLIED], Verdict.APPLIED),
        ([Verdict.LATE, Verdict.HELD], Verdict.HELD),
        ([Verdict.LATE, Verdict.TOO_OLD], Verdict.LATE),
        ([Verdict.DUPLICATE], Verdict.DUPLICATE),
    ],
)
def test_a_gradient_is_used_if_any_shard_used_it(verdicts: list[Verdict], whole: Verdict) -> None:
    assert verdict_of([Reply(verdict, "", 0, ORIGIN, ORIGIN) for verdict in verdicts]) is whole
