"""The one door by which gradients enter the vector, as `GradientSource` promises it."""

import asyncio
import contextlib
import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from distbelief.chance import generator
from distbelief.errors import TaskError
from distbelief.ports import Gradient
from distbelief.server.layout import Layout
from distbelief.task.data import ArrayRows, Batches, Rows, SampleRows
from distbelief.task.gradients import FlatModule, ModuleGradients
from distbelief.task.task import Task, trainable
from tests.reads import Reads

CHANCE = generator(0, "gradients")
X = torch.randn(20, 6, generator=CHANCE)
Y = torch.randn(20, 3, generator=CHANCE)


def flat_of(module: nn.Module) -> FlatModule:
    mutable_buffers = [name for name, _ in module.named_buffers()]
    return FlatModule(module.train(), Layout.of([(name, p.detach()) for name, p in trainable(module)]), mutable_buffers)


def source_of(
    task: Task, *, seed: int = 0, rows: Rows | None = None, module: nn.Module | None = None
) -> ModuleGradients:
    """A replica's source for a task, with batches of 8."""
    rows = rows or ArrayRows(task.train, "train")
    return ModuleGradients(task, flat_of(module or task.build(seed)), Batches(rows, 8, seed), seed=seed)


def regression(model: Callable[[], nn.Module], **options: Any) -> Task:
    return Task(model, nn.functional.mse_loss, **({"train": (X, Y)} | options))


def ask(source: ModuleGradients, epoch: int = 0, batch: int = 0) -> Gradient:
    return asyncio.run(source.gradient(epoch, batch))


def by_hand(task: Task, source: ModuleGradients, epoch: int, batch: int) -> list[Tensor | None]:
    """What autograd says on a module of its own that holds the same parameters."""
    module = task.build(source.seed).train()
    for mine, theirs in zip(trainable(module), source.flat.parameters, strict=True):
        mine[1].data = theirs.detach().clone()
    x, y = source.batches(epoch, batch)
    nn.functional.mse_loss(module(x), y).backward()
    return [p.grad for _, p in trainable(module)]


def assert_equal(ours: Gradient, theirs: list[Tensor | None]) -> None:
    for mine, reference in zip(ours.tensors, theirs, strict=True):
        assert (mine is None) == (reference is None)
        if mine is not None and reference is not None:
            assert torch.equal(mine, reference)


class Two(nn.Module):
    """One layer used twice, one that is frozen, one without bias, one that takes no part."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(6, 6, bias=False)
        self.alias = self.shared
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        self.out = nn.Linear(6, 3)
        self.idle = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.out(self.frozen(self.alias(torch.tanh(self.shared(x)))))
        return result


# The gradient of a batch


def test_the_gradient_is_autograds_at_the_vector_of_the_replica() -> None:
    task = regression(lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)))
    source = source_of(task)
    for step in range(3):
        gradient = ask(source, step, step)
        assert_equal(gradient, by_hand(task, source, step, step))
        source.flat.vector -= 0.1 * torch.randn(len(source.flat.vector), generator=CHANCE)


def test_a_small_last_batch_tells_its_size() -> None:
    source = source_of(regression(lambda: nn.Linear(6, 3)))
    assert [ask(source, 0, batch).examples for batch in range(3)] == [8, 8, 4]


def test_gradients_do_not_add_up_between_batches() -> None:
    source = source_of(regression(lambda: nn.Linear(6, 3)))
    first, again = ask(source), ask(source)
    assert_equal(first, again.tensors)
    for a, b in zip(first.tensors, again.tensors, strict=True):
        assert a is not None
        assert b is not None
        assert a.data_ptr() != b.data_ptr(), "the receiver owns its tensors"


def test_nothing_is_read_out_of_a_tensor_before_the_replica_does() -> None:
    """On a GPU, computing a batch would wait for it."""
    source = source_of(regression(lambda: nn.Linear(6, 3)))
    ask(source)
    with Reads() as reads:
        gradient = ask(source)
    assert reads.count == 0
    assert not gradient.loss.requires_grad


def test_a_layer_used_twice_is_one_parameter_with_the_sum_of_its_gradients() -> None:
    task = regression(Two)
    source = source_of(task)
    names = [entry.name for entry in source.flat.layout.entries]
    assert names == ["shared.weight", "out.weight", "out.bias", "idle.weight", "idle.bias"]
    gradient = ask(source)
    assert_equal(gradient, by_hand(task, source, 0, 0))
    source.flat.vector.zero_()
    assert not source.flat.module.get_parameter("alias.weight").any(), "tied after all"


def test_what_takes_no_part_has_no_gradient_and_what_is_frozen_is_not_asked() -> None:
    gradient = ask(source_of(regression(Two)))
    assert [tensor is None for tensor in gradient.tensors] == [False, False, False, True, True]


def test_a_double_model_has_a_double_vector() -> None:
    task = regression(lambda: nn.Linear(6, 3).double(), train=(X.double(), Y.double()))
    source = source_of(task)
    assert source.flat.vector.dtype == torch.float64
    assert_equal(ask(source), by_hand(task, source, 0, 0))


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.low = nn.Linear(6, 4, dtype=torch.bfloat16)
        self.high = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.high(self.low(x.bfloat16()).float())
        return result


def test_parameters_of_a_lower_kind_are_cast_at_the_edge() -> None:
    task = regression(Mixed)
    source = source_of(task)
    flat = source.flat
    assert flat.vector.dtype == torch.float32
    flat.vector += 0.1
    gradient = ask(source)
    assert [tensor is not None and tensor.dtype for tensor in gradient.tensors] == [torch.float32] * 4
    low = flat.layout.named(flat.vector)["low.weight"]
    assert torch.equal(flat.module.get_parameter("low.weight"), low.bfloat16()), "refreshed before the batch"
    assert flat.module.get_parameter("low.weight").dtype == torch.bfloat16
    reference = by_hand(task, source, 0, 0)
    assert_equal(gradient, [None if t is None else t.float() for t in reference])


def test_a_sparse_gradient_becomes_dense() -> None:
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(10, 3, sparse=True)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.embedding(x).sum(1)
            return result

    indices = torch.randint(0, 10, (20, 4), generator=CHANCE)
    (tensor,) = ask(source_of(regression(Bag, train=(indices, Y)))).tensors
    assert tensor is not None
    assert tensor.layout is torch.strided
    assert tensor.shape == (10, 3)


def test_a_loss_that_is_a_sum_keeps_its_weight_until_it_is_applied() -> None:
    def weighted(prediction: Tensor, target: Tensor) -> tuple[Tensor, int]:
        return nn.functional.mse_loss(prediction, target, reduction="sum"), prediction.numel()

    plain = ask(source_of(regression(lambda: nn.Linear(6, 3))))
    summed = ask(source_of(Task(lambda: nn.Linear(6, 3), weighted, train=(X, Y))))
    assert summed.loss.item() == pytest.approx(plain.loss.item())
    assert plain.weight is None
    assert summed.weight is not None
    for a, b in zip(plain.tensors, summed.tensors, strict=True):
        assert a is not None
        assert b is not None
        torch.testing.assert_close(a, b / summed.weight)


@pytest.mark.parametrize(
    "train",
    [(X, Y), ([X[:, :3], X[:, 3:]], Y), ({"a": X[:, :3], "b": X[:, 3:]}, Y)],
    ids=["tensor", "tuple", "dict"],
)
def test_an_input_is_one_argument_several_or_named_ones(train: Any) -> None:
    class Joined(nn.Linear):
        def forward(self, a: Tensor, b: Tensor | None = None) -> Tensor:
            return super().forward(a if b is None else torch.cat([a, b], 1))

    assert_equal(ask(source_of(regression(lambda: Joined(6, 3), train=train))), by_hand(
        task := regression(lambda: Joined(6, 3)), source_of(task), 0, 0
    ))  # fmt: skip


def test_a_batch_may_be_of_any_kind_that_a_step_understands() -> None:
    """Texts, objects: how many examples it holds is known without looking into it."""

    class Texts(SampleRows):
        def __init__(self) -> None:
            super().__init__([("abc", float(i)) for i in range(20)], None)

    def step(model: nn.Module, batch: Any) -> Tensor:
        texts, numbers = batch
        assert texts[0] == "abc"
        result: Tensor = model(numbers.float()[:, None]).mean()
        return result

    task = Task(lambda: nn.Linear(1, 1), step=step, train=[("abc", 1.0)])
    assert [ask(source_of(task, rows=Texts()), 0, batch).examples for batch in (0, 2)] == [8, 4]


# Chance


class Random(nn.Module):
    """Draws from every source that user code may draw from."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.dropout(self.layer(x)) * random.random() * np.random.rand()
        return result


def same(a: Gradient, b: Gradient) -> bool:
    return all(x is not None and y is not None and torch.equal(x, y) for x, y in zip(a.tensors, b.tensors, strict=True))


def test_a_batch_has_one_gradient_whichever_replica_computes_it_and_when() -> None:
    task = regression(Random)
    one, other = source_of(task), source_of(task)
    expected = {(epoch, batch): ask(one, epoch, batch) for epoch in range(2) for batch in range(3)}
    torch.manual_seed(99)
    for key in sorted(expected, reverse=True):
        random.seed()
        np.random.seed()
        assert same(ask(other, *key), expected[key])


def test_chance_is_keyed_by_seed_epoch_and_batch() -> None:
    class Same(ArrayRows):
        """Every example is the same one, so that only chance differs."""

        def __init__(self) -> None:
            super().__init__((X[:1].expand(20, 6), Y[:1].expand(20, 3)), "train")

    task, module = regression(Random), Random()
    asked = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)]
    gradients = [ask(source_of(task, seed=seed, rows=Same(), module=module), e, b) for seed, e, b in asked]
    assert not any(same(a, b) for i, a in enumerate(gradients) for b in gradients[:i])
    assert same(ask(source_of(task, rows=Same(), module=module)), gradients[0])


# The flat module


def test_the_parameters_are_views_of_the_vector() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 2, bias=False)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    before = [p.detach().clone() for p in module.parameters()]
    flat = flat_of(module)
    for parameter, value, view in zip(module.parameters(), before, flat.layout.views(flat.vector), strict=True):
        assert torch.equal(parameter, value)
        assert parameter.data_ptr() == view.data_ptr()
        assert parameter.is_contiguous()


def test_buffers_travel_as_one_vector() -> None:
    norm = nn.BatchNorm1d(3)
    norm(torch.randn(10, 3, generator=CHANCE))
    flat = flat_of(norm)
    values = flat.buffers()
    assert (len(values), values.dtype) == (7, torch.float64)
    fresh = flat_of(nn.BatchNorm1d(3))
    fresh.load_buffers_(values)
    for mine, theirs in zip(fresh.module.buffers(), norm.buffers(), strict=True):
        assert torch.equal(mine, theirs)
    assert len(flat_of(nn.Linear(2, 2)).buffers()) == 0


def test_the_mean_of_replicas_buffers_is_the_mean_of_numbers_and_the_largest_of_counts() -> None:
    class Buffered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(1))
            self.register_buffer("mean", torch.zeros(2))
            self.register_buffer("count", torch.zeros((), dtype=torch.int64))
            self.register_buffer("seen", torch.zeros(1, dtype=torch.bool))

    flat = flat_of(Buffered())
    rows = torch.tensor([[1.0, 10.0, 7.0, 0.0], [3.0, 20.0, 9.0, 1.0]], dtype=torch.float64)
    mean = flat.mean_buffers(rows)
    assert mean.tolist() == [2.0, 15.0, 9.0, 1.0]
    flat.load_buffers_(mean)
    assert [buffer.tolist() for buffer in flat.module.buffers()] == [[2.0, 15.0], 9, [True]]
    assert flat.mean_buffers(torch.cat([rows, rows[:1] * 2**50 + 1]))[2] == 7 * 2**50 + 1
    assert len(flat_of(nn.Linear(2, 2)).mean_buffers(torch.empty(3, 0, dtype=torch.float64))) == 0


def test_beside_the_loop_it_is_the_same_gradient_and_others_run_meanwhile() -> None:
    """A device computes by itself; bytes are moved while it does."""
    go = threading.Event()

    def slowly(prediction: Tensor, target: Tensor) -> Tensor:
        assert go.wait(timeout=60)
        return nn.functional.mse_loss(prediction, target)

    task = Task(lambda: nn.Linear(6, 3), slowly, train=(X, Y))
    inline = source_of(regression(lambda: nn.Linear(6, 3)))
    beside = ModuleGradients(task, flat_of(task.build(0)), inline.batches, seed=0, beside=True)

    async def main() -> Gradient:
        computing = asyncio.create_task(beside.gradient(0, 0))
        await asyncio.sleep(0)
        go.set()
        return await computing

    assert_equal(asyncio.run(main()), ask(inline).tensors)


def test_bf16_computes_in_it_and_gives_gradients_of_the_vector_s_kind() -> None:
    seen: list[torch.dtype] = []

    def loss(prediction: Tensor, target: Tensor) -> Tensor:
        seen.append(prediction.dtype)
        return nn.functional.mse_loss(prediction, target)

    task = Task(lambda: nn.Linear(6, 3), loss, train=(X, Y))
    exact = ask(source_of(task))
    inline = source_of(task)
    coarse = ask(ModuleGradients(task, inline.flat, inline.batches, seed=0, precision="bf16"))
    assert seen == [torch.float32, torch.bfloat16]
    for mine, reference in zip(coarse.tensors, exact.tensors, strict=True):
        assert mine is not None
        assert reference is not None
        assert mine.dtype == torch.float32
        assert not torch.equal(mine, reference)
        assert torch.allclose(mine, reference, rtol=0.05, atol=0.02)


def test_a_buffer_that_is_replaced_is_still_told_of() -> None:
    class Average(nn.Module):
        mean: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 3)
            self.register_buffer("mean", torch.zeros(3))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.layer(x)
            self.mean = 0.5 * self.mean + 0.5 * y.detach().mean(0)
            return y

    module = Average()
    flat = flat_of(module)
    module(X)
    assert torch.equal(flat.buffers(), module.mean.double())
    flat.load_buffers_(torch.ones(3, dtype=torch.float64))
    assert torch.equal(module.mean, torch.ones(3))


def test_parameters_that_move_stay_views_of_the_vector() -> None:
    """On the meta device there is nothing to compute with, but everything that a GPU's placing does is done."""
    module = nn.Linear(6, 3)
    layout = Layout.of([(name, p.detach()) for name, p in trainable(module)])
    flat = FlatModule(module, layout, device=torch.device("meta"))
    assert [p.device.type for p in flat.parameters] == ["meta", "meta"]
    assert flat.parameters[0] is module.weight
    assert flat.parameters[0].data_ptr() == flat.vector.data_ptr()
    assert flat.vector.device.type == "meta"


# What the user's own code does to the module


class Constrained(nn.Linear):
    """Doubles its weight before it is used, in the manner of constraints that are written so; `how` says which."""

    def __init__(self, how: str) -> None:
        super().__init__(6, 3)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        twice = 2 * self.weight.detach()
        if self.how == "data":
            self.weight.data = twice
        elif self.how == "replaced":
            self.weight = nn.Parameter(twice)
        elif self.how == "loaded":
            self.load_state_dict({**self.state_dict(), "weight": twice}, assign=True)
        elif self.how == "in place":
            self.weight.data.mul_(2)
        return super().forward(x)


@pytest.mark.parametrize("how", ["data", "replaced", "loaded", "in place"])
def test_a_parameter_that_is_cut_loose_takes_its_value_into_the_vector(how: str) -> None:
    torch.manual_seed(0)
    module, task = Constrained(how), regression(lambda: nn.Linear(6, 3))
    source = source_of(task, module=module)
    flat, weight = source.flat, module.weight
    before = weight.detach().clone()
    gradient = ask(source)
    assert module.weight is weight
    assert module.weight.data_ptr() == flat.layout.named(flat.vector)["weight"].data_ptr()
    assert torch.equal(flat.layout.named(flat.vector)["weight"], 2 * before)
    plain = nn.Linear(6, 3)
    plain.load_state_dict({"weight": 2 * before, "bias": module.bias.detach()})
    assert_equal(gradient, by_hand(task, source_of(task, module=plain), 0, 0))
    # What is fetched into the vector is what the next batch begins with.
    flat.vector.fill_(1.0)
    ask(source)
    assert torch.equal(flat.layout.named(flat.vector)["weight"], torch.full((3, 6), 2.0))


def test_a_parameter_of_another_type_that_is_cut_loose_is_put_back_too() -> None:
    class Cut(Mixed):
        def forward(self, x: Tensor) -> Tensor:
            self.low.weight.data = torch.ones(4, 6, dtype=torch.bfloat16)
            return super().forward(x)

    source = source_of(regression(Cut))
    ask(source)
    assert source.flat.layout.named(source.flat.vector)["low.weight"].eq(1).all()
    source.flat.vector.zero_()
    source.flat.refresh()
    assert not source.flat.module.get_parameter("low.weight").any()


def test_an_evaluation_sees_the_vector_whatever_the_last_one_did_to_the_module() -> None:
    flat = flat_of(module := Constrained("data"))
    module(X)
    assert module.weight.data_ptr() != flat.vector.data_ptr()
    flat.vector.fill_(3.0)
    flat.refresh()
    assert module.weight.eq(3).all()


class Meddling(nn.Module):
    """Two tied layers, one alone and a frozen one; its forward does something to them."""

    def __init__(self, meddle: Callable[["Meddling"], object]) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.b.weight = self.a.weight
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.meddle = meddle

    def forward(self, x: Tensor) -> Tensor:
        self.meddle(self)
        result: Tensor = self.frozen(self.c(self.b(self.a(x))))
        return result


def _untie(m: Meddling) -> None:
    m.b.weight = nn.Parameter(m.a.weight.detach().clone())


def _remove(m: Meddling) -> None:
    weight = m.c.weight.detach()
    del m.c.weight
    m.c.register_buffer("weight", weight)


@pytest.mark.parametrize(
    ("meddle", "complaint"),
    [
        (_untie, r"untied parameter a\.weight .*: do that in model\(\)"),
        (_remove, r"removed parameter c\.weight .*: do that in model\(\)"),
        (lambda m: m.double(), r"has made parameter a\.weight float64 \(6, 6\) on cpu, which was float32"),
        (lambda m: m.c.weight.set_(m.c.weight[:1]), r"has made parameter c\.weight float32 \(1, 6\)"),
        (lambda m: m.frozen.requires_grad_(), r"frozen\.weight was frozen when the run began, .* start="),
        (lambda m: setattr(m.frozen, "weight", nn.Parameter(torch.ones(3, 3))), r"frozen\.weight was frozen"),
    ],
    ids=["untied", "removed", "cast", "cut", "thawed", "frozen one replaced"],
)
def test_what_cannot_be_trained_so_is_named_within_the_batch(
    meddle: Callable[[Meddling], object], complaint: str
) -> None:
    def quietly(module: Meddling) -> None:
        with torch.no_grad():
            meddle(module)

    source = source_of(regression(lambda: nn.Linear(6, 3)), module=Meddling(quietly))

    def try_it() -> None:
        # The user's own code may fail by itself, and then the batch does not pass either.
        with contextlib.suppress(RuntimeError):
            ask(source)
        source.flat.settle()

    with pytest.raises(TaskError, match=complaint):
        try_it()


def test_a_parameter_may_stand_still_for_a_while() -> None:
    """As gradual unfreezing does it; torch's optimizers skip it likewise."""
    still = True
    source = source_of(
        regression(lambda: nn.Linear(6, 3)), module=Meddling(lambda module: module.c.requires_grad_(not still))
    )
    assert [tensor is None for tensor in ask(source).tensors] == [False, False, False, True, True]
    still = False
    assert [tensor is None for tensor in ask(source).tensors] == [False] * 5


def test_mutable_buffers_are_put_back() -> None:
    """A frozen parameter that training moves, such as a teacher's, among them."""

    class Follower(nn.Module):
        replaced: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.layer, self.norm = nn.Linear(6, 3), nn.BatchNorm1d(3)
            self.teacher = nn.Parameter(torch.zeros(3, 6), requires_grad=False)
            self.register_buffer("replaced", torch.zeros(2))

        def forward(self, x: Tensor) -> Tensor:
            self.teacher.data.lerp_(self.layer.weight.detach(), 0.5)
            self.replaced = self.replaced + 1
            result: Tensor = self.norm(self.layer(x))
            return result

    task = regression(Follower)
    module = Follower().train()
    names = ["teacher", *(name for name, _ in module.named_buffers())]
    flat = FlatModule(module, Layout.of([(name, p.detach()) for name, p in trainable(module)]), names)
    source = ModuleGradients(task, flat, Batches(ArrayRows((X, Y), "train"), 8, 0), seed=0)
    ask(source)
    source.keep()
    kept = flat.buffers()
    ask(source, 0, 1)
    ask(source, 0, 2)
    assert not torch.equal(flat.buffers(), kept)
    source.undo()
    assert torch.equal(flat.buffers(), kept)
    assert module.replaced.tolist() == [1, 1]
    assert torch.equal(module.teacher.flatten().double(), kept[:18])


def test_a_buffer_that_has_another_shape_is_told_as_it_was() -> None:
    class State(nn.Module):
        last: Tensor
        count: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 3)
            self.register_buffer("last", torch.zeros(8))
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.layer(x)
            self.last = y.detach()[:, 0]
            self.count += 1
            return y

    source = source_of(regression(State))
    flat = source.flat
    ask(source, 0, 0)
    source.keep()
    told = flat.buffers()
    ask(source, 0, 2)
    assert flat.module.get_buffer("last").shape == (4,)
    assert torch.equal(flat.buffers(), told + torch.tensor([0.0] * 8 + [1.0]))
    flat.load_buffers_(told)
    assert flat.module.get_buffer("last").shape == (8,)
    del flat.module.last
    assert torch.equal(flat.buffers(), told)
