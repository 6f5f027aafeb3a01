"""The tensors of a module by name: every parameter and buffer, also those that `state_dict` leaves out."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

_SAMPLE = 1024
"""Elements of a tensor that two builds of a model are compared by."""


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """A module's parameters and buffers by name, each once however often it is used; not copies, and no lazy ones."""
    both = [*module.named_parameters(), *module.named_buffers()]
    return {name: tensor.detach() for name, tensor in both if not is_lazy(tensor)}


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


def make_room_(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give buffers that a forward pass fills or enlarges the shapes that they have in a `state_dict`."""
    for name, owner, leaf in _buffers(module):
        before = owner._buffers[leaf]
        if name in state and (before is None or is_lazy(before) or before.shape != state[name].shape):
            _replace(module, name, state[name])


class Sketch(NamedTuple):
    """What two builds of one tensor have in common, but for rounding."""

    kind: tuple[torch.dtype, torch.Size]
    sample: Tensor
    """Evenly spaced elements, as float64."""

    def fits(self, other: "Sketch") -> bool:
        """Whether both may be of equal tensors. Rounding may depend on the number of threads, as in a QR."""
        exact = not (self.kind[0].is_floating_point or self.kind[0].is_complex)
        scale = 0.0 if exact else float(self.sample.nan_to_num(0.0, 0.0, 0.0).norm()) / max(1, len(self.sample)) ** 0.5
        return self.kind == other.kind and torch.allclose(
            self.sample, other.sample, rtol=0.0, atol=1e-4 * scale, equal_nan=True
        )


def sketches_of(module: nn.Module) -> dict[str, Sketch]:
    """A sketch of each of a module's tensors, by name; also of those that are attributes, and of NumPy's arrays."""
    found = tensors_of(module)
    for path, layer in module.named_modules():
        for leaf, value in vars(layer).items():
            if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
                found[f"{path}.{leaf}".lstrip(".")] = torch.from_numpy(value.astype(np.float64))
            elif isinstance(value, Tensor) and value.layout is torch.strided and not is_lazy(value):
                found[f"{path}.{leaf}".lstrip(".")] = value.detach()
    return {name: _sketch(tensor) for name, tensor in found.items()}


def _sketch(tensor: Tensor) -> Sketch:
    flat = torch.view_as_real(tensor.resolve_conj()).reshape(-1) if tensor.is_complex() else tensor.reshape(-1)
    return Sketch((tensor.dtype, tensor.shape), flat[:: max(1, len(flat) // _SAMPLE)].to(torch.float64, copy=True))


def unlike(one: Mapping[str, Sketch], other: Mapping[str, Sketch]) -> str | None:
    """The first tensor by which two builds of a model differ; None if there is none."""
    names = (name for name in {**one, **other} if name not in one or name not in other)
    return next(names, None) or next((name for name in one if not one[name].fits(other[name])), None)


def _buffers(module: nn.Module) -> list[tuple[str, nn.Module, str]]:
    """The places of a module's buffers, the empty ones among them: full name, owner, and its name there."""
    return [
        (f"{path}.{leaf}" if path else leaf, owner, leaf)
        for path, owner in module.named_modules()
        for leaf in owner._buffers
    ]


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
    if (parameter := owner._parameters.get(leaf)) is not None:
        parameter.data = _typed(value, parameter).to(parameter.device, parameter.dtype, copy=True)
        return
    before = owner._buffers.get(leaf)
    if before is None or is_lazy(before):
        fresh = value.clone()
    else:
        fresh = _typed(value, before).to(before.device, before.dtype, copy=True)
    kept = leaf in owner._buffers and leaf not in owner._non_persistent_buffers_set
    owner.register_buffer(leaf, fresh, persistent=kept)
