"""The tensors of a module by name: every parameter and buffer, also those that `state_dict` leaves out."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """A module's parameters and buffers by name, each once however often it is used; not copies."""
    return {name: tensor.detach() for name, tensor in [*module.named_parameters(), *module.named_buffers()]}


def put_(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Give parameters and buffers new values by name; what is not named stays as it is.

    A buffer of another shape is replaced, and one that the module has not made yet is made, in no `state_dict`.
    """
    here = tensors_of(module)
    with torch.no_grad():
        for name, value in values.items():
            if name in here and _fits(value, here[name]):
                here[name].copy_(_typed(value, here[name]))
            else:
                _replace(module, name, value)


def _fits(value: Tensor, tensor: Tensor) -> bool:
    # An expanded tensor, whose elements share memory, cannot be written to.
    apart = all(stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1)
    return apart and _typed(value, tensor).shape == tensor.shape


def _typed(value: Tensor, tensor: Tensor) -> Tensor:
    """A value for a complex tensor may come as pairs of real numbers."""
    pairs = tensor.is_complex() and value.is_floating_point() and value.shape[-1:] == (2,)
    return torch.view_as_complex(value) if pairs else value


def _replace(module: nn.Module, name: str, value: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    before = owner._buffers.get(leaf)
    fresh = value.clone() if before is None else _typed(value, before).to(before.device, before.dtype, copy=True)
    kept = leaf in owner._buffers and leaf not in owner._non_persistent_buffers_set
    owner.register_buffer(leaf, fresh, persistent=kept)
