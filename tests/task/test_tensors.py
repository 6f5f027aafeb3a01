"""The tensors of a module by name."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from distbelief.task.tensors import make_room_, put_, sketches_of, tensors_of, unlike


class Held(nn.Module):
    """A module with one buffer."""

    held: Tensor

    def __init__(self, held: Tensor | None, *, persistent: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.register_buffer("held", held, persistent=persistent)


def test_every_tensor_is_there_once() -> None:
    module = Held(torch.zeros(3), persistent=False)
    module.again = module.linear
    assert list(tensors_of(module)) == ["linear.weight", "linear.bias", "held"]
    assert tensors_of(module)["linear.weight"].data_ptr() == module.linear.weight.data_ptr()


KINDS = [
    torch.randn(3),
    torch.randn(3, 2).double(),
    torch.randn(4).half(),
    torch.randn(4).bfloat16(),
    torch.arange(5),
    torch.tensor([2**53 + 1]),
    torch.tensor([1, 250], dtype=torch.uint8),
    torch.tensor([True, False]),
    torch.tensor(3.5),
    torch.tensor(True),
    torch.zeros(0),
    torch.zeros(2, 0, dtype=torch.int32),
    torch.randn(3, dtype=torch.complex64),
    torch.randn(2, 2, dtype=torch.complex128),
    torch.tensor(1 + 2j),
    torch.zeros(1).expand(4),
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.dtype}{list(kind.shape)}")
def test_a_buffer_of_any_kind_is_put_in(kind: Tensor) -> None:
    module, before = Held(torch.zeros_like(kind)), nn.Linear(2, 2).state_dict()
    place = module.held
    put_(module, {"held": kind, **{f"linear.{name}": tensor for name, tensor in before.items()}})
    assert module.held.dtype == kind.dtype
    assert torch.equal(module.held, kind)
    assert module.held is place
    assert torch.equal(module.linear.weight, before["weight"])
    assert module.linear.weight.requires_grad


def test_a_complex_one_may_come_as_pairs() -> None:
    value = torch.randn(3, 2, dtype=torch.complex64)
    module = Held(torch.zeros_like(value))
    put_(module, {"held": torch.view_as_real(value)})
    assert torch.equal(module.held, value)


@pytest.mark.parametrize(
    "before", [None, torch.zeros(2), torch.zeros(1).expand(5)], ids=["none", "shorter", "expanded"]
)
@pytest.mark.parametrize("persistent", [True, False])
def test_a_buffer_that_cannot_be_written_to_is_replaced(before: Any, persistent: bool) -> None:
    module, value = Held(before, persistent=persistent), torch.randn(5)
    put_(module, {"held": value})
    assert torch.equal(module.held, value)
    assert module.held.data_ptr() != value.data_ptr()
    assert ("held" in module.state_dict()) == persistent


def test_a_buffer_that_is_not_made_yet_is_made() -> None:
    module = Held(None)
    put_(module, {"linear.mask": torch.ones(2)})
    assert torch.equal(module.linear.get_buffer("mask"), torch.ones(2))
    assert "linear.mask" not in module.state_dict()


# Two builds of one model


def test_builds_of_one_model_are_alike_but_for_rounding() -> None:
    module = Held(torch.randn(3000, generator=torch.Generator().manual_seed(1)))
    known = sketches_of(module)
    assert unlike(known, sketches_of(module)) is None
    module.held *= 1 + 1e-6
    assert unlike(known, sketches_of(module)) is None
    module.held.normal_()
    assert unlike(known, sketches_of(module)) == "held"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.dtype}{list(kind.shape)}")
def test_a_tensor_of_any_kind_is_compared(kind: Tensor) -> None:
    one, other = Held(kind), Held(kind.clone())
    other.linear = one.linear
    assert unlike(sketches_of(one), sketches_of(other)) is None
    other.held = torch.ones(7, dtype=kind.dtype)
    assert unlike(sketches_of(one), sketches_of(other)) == "held"


def test_what_is_no_parameter_and_no_buffer_is_compared_too() -> None:
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    other.load_state_dict(one.state_dict())
    one.plain, other.plain = torch.zeros(3), torch.ones(3)
    assert unlike(sketches_of(one), sketches_of(other)) == "plain"
    other.plain = one.plain
    one.array, other.array = np.arange(5), np.arange(5)[::-1]  # type: ignore[assignment]
    assert unlike(sketches_of(one), sketches_of(other)) == "array"


def test_numbers_that_are_none_are_equal_and_whole_ones_exact() -> None:
    odd = torch.tensor([float("nan"), float("inf"), 1.0])
    one, other = Held(odd), Held(odd.clone())
    other.linear = one.linear
    assert unlike(sketches_of(one), sketches_of(other)) is None
    one.held, other.held = torch.tensor([100_000]), torch.tensor([100_001])
    assert unlike(sketches_of(one), sketches_of(other)) == "held"


def test_room_is_made_for_what_a_forward_pass_fills() -> None:
    state = {"held": torch.ones(4), "linear.weight": torch.zeros(9, 9)}
    for module in (Held(None), Held(torch.zeros(2))):
        make_room_(module, state)
        assert module.held.shape == (4,)
        assert module.linear.weight.shape == (2, 2)
