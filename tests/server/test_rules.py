"""Each rule in the shards is the torch optimizer of its name, to the last bit, however the vector is cut."""

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from distbelief.chance import generator
from distbelief.errors import UsageError
from distbelief.ports import Gradient
from distbelief.server.admission import Buffered
from distbelief.server.client import HandOver
from distbelief.server.layout import Layout
from distbelief.server.rules import SGD, Adagrad, Adam, AdamW, Groups, Rule, resolved_rule
from distbelief.server.schedules import Cosine, Linear
from tests.shards import NO_WORK, ON_ARRIVAL, make_client, make_push, make_shard, make_shards, set_living

SHAPES = ((), (1,), (5, 3), (16,), (33,), (7, 11), (2, 3, 17))
STEPS = 20

Options = dict[str, Any]
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


def in_torch(groups: dict[str, Options], tensors: list[Tensor]) -> list[dict[str, Any]]:
    """Torch's parameter groups for tensors that are called by their numbers: the first key with its digit wins."""
    wanted: list[tuple[str, Options]] = [*groups.items(), ("0123456789", {})]
    found: list[dict[str, Any]] = [{"params": [], **options} for _, options in wanted]
    for number, tensor in enumerate(tensors):
        place = next(i for i, (digits, _) in enumerate(wanted) if str(number) in digits)
        found[place]["params"].append(tensor)
    return [group for group in found if group["params"]]


def grouped(
    rule: Callable[..., Rule], optimizer: Callable[..., torch.optim.Optimizer], groups: dict[str, Options], **given: Any
) -> tuple[Rule, Optimizer]:
    """A rule with groups, and torch's optimizer with the same. Keys of groups are digits: the names they are for."""
    ours = {f"[{digits}]": options for digits, options in groups.items()}
    extra = {"eps": 0, "initial_accumulator_value": 2**-126} if rule is Adagrad else {}
    return (
        rule(0.01, groups=ours, **given),
        lambda tensors: optimizer(in_torch(groups, tensors), lr=0.01, fused=True, **given, **extra),
    )


WITH_GROUPS: dict[str, tuple[Rule, Optimizer]] = {
    "sgd": grouped(SGD, torch.optim.SGD, {"135": {"weight_decay": 0.3}, "52": {"lr": 0.2}}, weight_decay=0.1),
    "momentum in one group": grouped(SGD, torch.optim.SGD, {"25": {"momentum": 0.9, "nesterov": True}}),
    "momentum in the others": grouped(SGD, torch.optim.SGD, {"25": {"momentum": 0}}, momentum=0.9),
    "adagrad": grouped(Adagrad, torch.optim.Adagrad, {"04": {"lr": 0.1}, "6": {"weight_decay": 0.1}}),
    "adam": grouped(Adam, torch.optim.Adam, {"356": {"betas": (0.5, 0.9), "eps": 1e-3}, "1": {"lr": 0.1}}),
    "adamw": grouped(AdamW, torch.optim.AdamW, {"03": {"weight_decay": 0}, "24": {"lr": 0.5}}, weight_decay=0.1),
    "all in groups": grouped(AdamW, torch.optim.AdamW, {"012": {"weight_decay": 0}, "0123456": {"lr": 0.02}}),
}


def through_shards(
    rule: Rule, start: Sequence[Tensor], gradients: Sequence[Sequence[Tensor | None]], shards: int, *, replicas: int = 1
) -> list[Tensor]:
    """The parameters after a client has pushed each gradient to shards with this rule; several do it in rounds."""
    layout = Layout.of([(str(i), tensor) for i, tensor in enumerate(start)], shards)
    vector = torch.zeros(layout.length, dtype=layout.dtype)
    layout.gather_(vector, start)
    served = make_shards(layout, vector, rule, Buffered(replicas) if replicas > 1 else ON_ARRIVAL, replicas=replicas)
    for shard in served:
        set_living(shard, range(replicas))
    clients = [make_client(layout, served, replica=replica) for replica in range(replicas)]

    async def train() -> None:
        hand_over = HandOver()
        for gradient in gradients:
            versions = [await client.fetch(vector) for client in clients]
            for client, version in zip(clients, versions, strict=True):
                hand_over.accrue(Gradient(list(gradient), torch.zeros(()), 1), version)
                await client.push(hand_over.take(), NO_WORK)
        await clients[0].fetch(vector)

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


@pytest.mark.parametrize("shards", [1, 3, 7])
@pytest.mark.parametrize("name", WITH_GROUPS)
def test_groups_are_torchs_parameter_groups_bit_for_bit(name: str, shards: int) -> None:
    """Tensors that are cut by the border of a shard among them."""
    rule, optimizer = WITH_GROUPS[name]
    start, gradients = draw(torch.float32)
    assert len(Layout.of([(str(i), t) for i, t in enumerate(start)], shards).pieces) == shards
    ours, theirs = through_shards(rule, start, gradients, shards), through_torch(optimizer, start, gradients)
    plain = through_shards(replace(rule, groups={}), start, gradients, shards)  # type: ignore[type-var]
    for mine, reference in zip(ours, theirs, strict=True):
        assert torch.equal(mine, reference)
    assert not all(map(torch.equal, ours, plain))


@pytest.mark.parametrize("shards", [1, 3])
def test_groups_hold_for_the_mean_of_a_round_too(shards: int) -> None:
    """It is one gradient of the whole shard, cut where groups meet; padding makes a kernel's last bit differ."""
    rule, _ = WITH_GROUPS["adamw"]
    start, gradients = draw(torch.float32)
    once = through_shards(rule, start, gradients, shards)
    rounds = through_shards(rule, start, gradients, shards, replicas=2)
    torch.testing.assert_close(rounds, once, rtol=1e-6, atol=1e-7)


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
        (lambda: Adam(0.1, betas=0.9), "betas must be two numbers"),  # type: ignore[arg-type]
        (
            lambda: Adam(0.1, groups={"*.bias": {"momentum": 0}}),
            r"Adam has no option 'momentum', .*: it has lr, betas, eps",
        ),
        (lambda: SGD(0.1, groups={"*.bias": {"nesterov": True}}), r"in the group '\*.bias': nesterov needs a momentum"),
        (lambda: SGD(0.1, groups={"*.bias": {"lr": 0}}), r"in the group '\*.bias': lr must be a positive number"),
        (lambda: SGD(0.1, groups={"*.bias": 0.1}), "a group is a pattern and its options"),  # type: ignore[dict-item]
        (lambda: SGD(0.1, groups=[{"params": []}]), "options by patterns"),  # type: ignore[arg-type]
    ],
)
def test_a_value_that_cannot_work_is_refused_where_it_is_made(make: Callable[[], Rule], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        make()


def test_a_rule_for_a_run_has_numbers_in_its_schedules_and_those_of_its_groups() -> None:
    found = resolved_rule(SGD(Cosine(0.1), groups={"a": {"lr": Linear(1.0, warmup=0.1)}, "b": {"momentum": 0.5}}), 1000)
    groups: Groups = {"a": {"lr": Linear(1.0, 1000, warmup=100)}, "b": {"momentum": 0.5}}
    assert found == SGD(Cosine(0.1, 1000), groups=groups)


def test_groups_are_a_copy() -> None:
    groups = {"*.bias": {"lr": 1.0}}
    rule = SGD(0.1, groups=groups)
    groups["*.bias"]["lr"] = 2.0
    assert rule.variants["*.bias"].lr == 1.0
