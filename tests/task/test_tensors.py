"""The tensors of a module by name."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distbelief.task.tensors import put_, tensors_of


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
