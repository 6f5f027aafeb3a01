"""Each rule in the shards is the torch optimizer of its name, to the last bit, however the vector is cut."""

import asyncio
import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from distbelief.chance import generator
from distbelief.errors import UsageError
from distbelief.ports import Gradient
from distbelief.server.client import HandOver
from distbelief.server.layout import Layout
from distbelief.server.rules import SGD, Adagrad, Adam, AdamW, Rule
from tests.shards import NO_WORK, make_client, make_push, make_shard, make_shards

SHAPES = ((), (1,), (5, 3), (16,), (33,), (7, 11), (2, 3, 17))
STEPS = 20

Optimizer = Callable[[list[Tensor]], torch.optim.Optimizer]
EQUALS: dict[str, tuple[Rule, Optimizer]] = {
    "sgd": (SGD(0.1), lambda p: torch.optim.SGD(p, 0.1, fused=True)),
    "weight decay": (SGD(0.1, weight_decay=0.01), lambda p: torch.optim.SGD(p, 0.1, weight_decay=0.01, fused=True)),
    "momentum": (SGD(0.1, momentum=0.9), lambda p: torch.optim.SGD(p, 0.1, 0.9, fused=True)),
    "nesterov": (
        SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
        lambda p: torch.optim.SGD(p, 0.1, 0.9, nesterov=True, weight_decay=0.01, fused=True),
    ),
    "adagrad": (
        Adagrad(0.01),
        lambda p: torch.optim.Adagrad(p, 0.01, eps=0, initial_accumulator_value=2**-126, fused=True),
    ),
    "adagrad with decay": (
        Adagrad(0.01, weight_decay=0.01),
        lambda p: torch.optim.Adagrad(p, 0.01, eps=0, weight_decay=0.01, initial_accumulator_value=2**-126, fused=True),
    ),
    "adam": (
        Adam(0.01, betas=(0.8, 0.95), eps=1e-7, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, 0.01, betas=(0.8, 0.95), eps=1e-7, weight_decay=0.1, fused=True),
    ),
    "adamw": (AdamW(0.01), lambda p: torch.optim.AdamW(p, 0.01, fused=True)),
}


def through_shards(
    rule: Rule, start: Sequence[Tensor], gradients: Sequence[Sequence[Tensor | None]], shards: int
) -> list[Tensor]:
    """The parameters after a client has pushed each gradient to shards with this rule."""
    layout = Layout.of([(str(i), tensor) for i, tensor in enumerate(start)], shards)
    vector = torch.zeros(layout.length, dtype=layout.dtype)
    layout.gather_(vector, start)
    served = make_shards(layout, vector, rule)
    client = make_client(layout, served)

    async def train() -> None:
        hand_over = HandOver()
        for gradient in gradients:
            versions = await client.fetch(vector)
            hand_over.accrue(Gradient(list(gradient), torch.zeros(()), 1), versions)
            await client.push(hand_over.take(), NO_WORK)
        await client.fetch(vector)

    asyncio.run(train())
    for shard in served:
        shard.check()
    return layout.views(vector)


def through_torch(
    optimizer: Optimizer, start: Sequence[Tensor], gradients: Sequence[Sequence[Tensor | None]]
) -> list[Tensor]:
    """The parameters after torch's own optimizer was given each gradient."""
    parameters = [tensor.clone() for tensor in start]
    stepper = optimizer(parameters)
    for gradient in gradients:
        for parameter, grad in zip(parameters, gradient, strict=True):
            parameter.grad = None if grad is None else grad.clone()
        stepper.step()
    return parameters


def draw(dtype: torch.dtype, steps: int = STEPS) -> tuple[list[Tensor], list[list[Tensor | None]]]:
    """Parameters of all shapes, and gradients of very different sizes for them."""
    chance = generator(0, "rules")
    start = [torch.randn(shape, generator=chance, dtype=dtype) for shape in SHAPES]
    gradients: list[list[Tensor | None]] = [
        [torch.randn(shape, generator=chance, dtype=dtype) * 10.0 ** (step % 7 - 4) for shape in SHAPES]
        for step in range(steps)
    ]
    return start, gradients


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("name", EQUALS)
def test_a_rule_is_torchs_optimizer_bit_for_bit(name: str, shards: int, dtype: torch.dtype) -> None:
    rule, optimizer = EQUALS[name]
    start, gradients = draw(dtype)
    ours, theirs = through_shards(rule, start, gradients, shards), through_torch(optimizer, start, gradients)
    for mine, reference, before in zip(ours, theirs, start, strict=True):
        assert torch.equal(mine, reference)
        assert not torch.equal(mine, before)


@pytest.mark.parametrize("name", ["weight decay", "momentum", "adagrad with decay"])
def test_a_parameter_that_took_no_part_is_left_alone_as_torch_leaves_it(name: str) -> None:
    """Neither weight decay nor momentum moves it. (Adam counts the shard's updates, not the parameter's.)"""
    rule, optimizer = EQUALS[name]
    start, gradients = draw(torch.float32)
    for step, gradient in enumerate(gradients[1:]):  # torch's fused momentum cannot begin without a gradient
        gradient[3] = None
        gradient[step % len(SHAPES)] = None
    ours, theirs = through_shards(rule, start, gradients, 3), through_torch(optimizer, start, gradients)
    for mine, reference in zip(ours, theirs, strict=True):
        assert torch.equal(mine, reference)


@pytest.mark.parametrize("rule", [rule for rule, _ in EQUALS.values()], ids=list(EQUALS))
def test_a_rule_leaves_the_gradient_as_it_is(rule: Rule) -> None:
    gradient = torch.linspace(-3, 3, 50)
    shard = make_shard(torch.ones(50), rule)
    shard.push(make_push(gradient, 1))
    assert torch.equal(gradient, torch.linspace(-3, 3, 50))


@pytest.mark.parametrize("scale", [1e-15, 1e-6, 1.0, 1e15])
def test_adagrads_first_step_is_the_rate_times_the_sign(scale: float) -> None:
    gradient = torch.tensor([1.0, -1.0, 3.7, -0.2]) * scale
    shard = make_shard(torch.zeros(4), Adagrad(0.25))
    shard.push(make_push(gradient, 1))
    torch.testing.assert_close(shard.parameters, -0.25 * gradient.sign(), rtol=2e-7, atol=0)


def test_adagrads_sum_includes_the_present_gradient_and_no_epsilon() -> None:
    shard = make_shard(torch.zeros(1, dtype=torch.float64), Adagrad(1.0))
    for sequence, gradient in enumerate((3.0, 4.0, 12.0), 1):
        shard.push(make_push(torch.tensor([gradient], dtype=torch.float64), sequence))
    assert shard.parameters.item() == pytest.approx(-(3 / 3 + 4 / 5 + 12 / 13), rel=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_a_zero_gradient_moves_nothing_in_adagrad(dtype: torch.dtype) -> None:
    start = torch.linspace(-1, 1, 40, dtype=dtype)
    shard = make_shard(start, Adagrad(0.1))
    for sequence in range(1, 4):
        shard.push(make_push(torch.zeros(40, dtype=dtype), sequence))
    assert torch.equal(shard.parameters, start)


@pytest.mark.parametrize("gradient", [1e-19, 1e-25, 1e-38, 1e-45])
def test_a_gradient_too_small_to_square_moves_a_weight_by_less_than_the_rate(gradient: float) -> None:
    """With a small epsilon in the place of the initial sum, 1e-25 would move the weight by far more than the rate."""
    shard = make_shard(torch.zeros(20), Adagrad(0.1))
    shard.push(make_push(torch.full((20,), gradient), 1))
    assert torch.isfinite(shard.parameters).all()
    assert (shard.parameters.abs() <= 0.1000001).all()
    assert (shard.parameters <= 0).all()


def test_adagrad_never_turns_an_endless_plateau_into_a_nan() -> None:
    shard = make_shard(torch.zeros(20), Adagrad(0.1))
    for sequence in range(1, 100):
        shard.push(make_push(torch.full((20,), 0.0 if sequence % 3 else 1e-30), sequence))
    shard.check()
    assert torch.isfinite(shard.vectors["sum"]).all()


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: SGD(0), "lr must be a positive number or a schedule, not 0"),
        (lambda: Adagrad(math.nan), "lr must be a positive number or a schedule, not nan"),
        (lambda: Adam(math.inf), "lr must be a positive number or a schedule, not inf"),
        (
            lambda: SGD("0.1"),  # type: ignore[arg-type]
            "lr must be a positive number or a schedule, not '0.1'",
        ),
        (lambda: SGD(0.1, weight_decay=-1), "weight_decay must not be negative, but is -1"),
        (lambda: AdamW(0.1, weight_decay=math.nan), "weight_decay must not be negative, but is nan"),
        (lambda: SGD(0.1, momentum=1), r"momentum must lie in \[0, 1\), but is 1"),
        (lambda: Adam(0.1, betas=(0.9, 1.5)), r"beta2 must lie in \[0, 1\), but is 1.5"),
        (lambda: SGD(0.1, nesterov=True), "nesterov needs a momentum above 0"),
    ],
)
def test_a_value_that_cannot_work_is_refused_where_it_is_made(make: Callable[[], Rule], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        make()
