"""The user's module as a source of gradients: where modules end and the parameter vector begins."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import KW_ONLY, dataclass
from typing import Literal, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.autograd.graph import _engine_run_backward

from distbelief.chance import derive
from distbelief.errors import TaskError
from distbelief.ports import Gradient
from distbelief.server.layout import Layout
from distbelief.task.data import Batches, seed_everything
from distbelief.task.nested import moved, shapes
from distbelief.task.task import Task
from distbelief.task.tensors import put_

CPU = torch.device("cpu")
Precision = Literal["bf16"]


def autocast(device: torch.device, precision: Precision | None) -> AbstractContextManager[object]:
    """What a forward pass is computed in: "bf16" where torch finds it safe, else as the parameters are."""
    # An autocast that is off already costs a tiny model's step a twentieth to enter and to leave.
    if precision is None and not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16, enabled=precision is not None)


def emulated(device: torch.device, precision: Precision | None) -> bool:
    """Whether a device has no instructions for a precision, so that it is far slower than float32."""
    return precision is not None and device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported()


class _Home(NamedTuple):
    """Where a trained parameter belongs."""

    name: str
    parameter: nn.Parameter
    data: Tensor
    """A view of the vector or, where the parameter is of another float type, the tensor that is cast from it."""
    view: Tensor
    places: tuple[tuple[dict[str, nn.Parameter | None], str], ...]
    """The dictionaries of the module's layers that hold it, and by which name: several where it is tied."""


class FlatModule:
    """A module whose trained parameters are views of one flat vector, on a device of choice.

    `mutable_buffers` names the buffers, and the parameters that are not trained, that training changes; replicas tell
    each other of these and of no others. One that comes to have another shape is left out, and told as it was last.
    Parameters of another float type than the vector's cannot be views: `refresh` casts them from it. The module keeps
    its frozen parameters and its other buffers to itself.

    The user's code may put another tensor in a parameter's place, as a constraint in `forward` does that writes
    `weight.data = …`. `settle` copies it into the vector and puts the parameter back; `refresh` puts it back alone.
    """

    def __init__(
        self, module: nn.Module, layout: Layout, mutable_buffers: Sequence[str] = (), device: torch.device = CPU
    ) -> None:
        self.module = module.to(device)
        self.device = device
        self.layout = layout
        self.vector = torch.zeros(layout.length, dtype=layout.dtype, device=device)
        places = _places(self.module)
        # By name, since what moves may become another object.
        self.parameters = [module.get_parameter(entry.name) for entry in layout.entries]
        layout.gather_(self.vector, [parameter.detach() for parameter in self.parameters])
        self._cast: tuple[list[Tensor], list[Tensor]] = ([], [])
        homes: list[_Home] = []
        for parameter, (name, view) in zip(self.parameters, layout.named(self.vector).items(), strict=True):
            parameter.requires_grad_()
            data = view if parameter.dtype == layout.dtype else parameter.data
            parameter.data = data
            if data is not view:
                self._cast[0].append(data)
                self._cast[1].append(view)
            homes.append(_Home(name, parameter, data, view, tuple(places.pop(parameter))))
        self._watched = [
            (home.parameter, home.data.data_ptr(), home.data.shape, table, leaf, home)
            for home in homes
            for table, leaf in home.places
        ]
        self._frozen = [place for several in places.values() for place in several]
        self._names = mutable_buffers
        self._mutable = [_place(self.module, name) for name in mutable_buffers]
        self._kept = [value.clone() for value in self._mutable_buffers()]

    def refresh(self) -> None:
        """Make the parameters equal to the vector, whatever the user's code has put in their place."""
        self._put_back(keep=False)
        self.cast_()

    def cast_(self) -> None:
        """The same where all parameters are in their places, as they are after `settle`."""
        if self._cast[0]:
            torch._foreach_copy_(*self._cast)

    def settle(self) -> None:
        """Take over what the user's code has put in a parameter's place.

        Raises `TaskError` for what cannot be trained so: a parameter that is gone, of another kind, tied no more, or
        newly trained.
        """
        self._put_back(keep=True)
        for table, leaf in self._frozen:
            if (parameter := table.get(leaf)) is not None and parameter.requires_grad:
                raise TaskError(
                    f"parameter {self._name(parameter)} was frozen when the run began, and the model's own code has "
                    "set requires_grad: let it be trained from the beginning, and set requires_grad_(False) in forward "
                    "as long as it is to stand still; or train in two runs, the second with start="
                )

    def _put_back(self, *, keep: bool) -> None:
        for parameter, address, shape, table, leaf, home in self._watched:
            if table.get(leaf) is not parameter or parameter.data_ptr() != address or parameter.shape != shape:
                self._put_home(home, keep=keep)

    def _put_home(self, home: _Home, *, keep: bool) -> None:
        found = [table.get(leaf) for table, leaf in home.places]
        fresh = found[0]
        if fresh is None or any(other is not fresh for other in found):
            what = "removed" if None in found else "untied"
            raise TaskError(
                f"the model's own code has {what} parameter {home.name} since the run began, so that it is not trained "
                f"any more: do that in model(), which is called before"
            )
        if (fresh.shape, fresh.dtype, fresh.device) != (home.data.shape, home.data.dtype, home.data.device):
            raise TaskError(
                f"the model's own code has made parameter {home.name} {shapes(fresh)} on {fresh.device}, which was "
                f"{shapes(home.data)} on {home.data.device}: give it its shape and type in model(), and leave its "
                "device to the run"
            )
        with torch.no_grad():
            if keep:
                home.data.copy_(fresh)
                if home.view is not home.data:
                    home.view.copy_(fresh)
            parameter = home.parameter
            parameter.data = home.data
            if fresh is not parameter:
                if fresh.grad is not None:
                    parameter.grad = fresh.grad if parameter.grad is None else parameter.grad + fresh.grad
                for table, leaf in home.places:
                    table[leaf] = parameter

    def _name(self, parameter: nn.Parameter) -> str:
        return next((name for name, found in self.module.named_parameters() if found is parameter), "of the model")

    def take_gradients(self) -> list[Tensor | None]:
        """Hand over the tensors that autograd made, in the vector's dtype, and leave none behind."""
        taken: list[Tensor | None] = []
        for parameter in self.parameters:
            gradient, parameter.grad = parameter.grad, None
            if gradient is not None and gradient.layout is not torch.strided:
                gradient = gradient.to_dense()
            taken.append(gradient)
        if self._cast[0]:
            return [None if gradient is None else gradient.to(self.layout.dtype) for gradient in taken]
        return taken

    def _mutable_buffers(self) -> list[Tensor]:
        # Asked for each time: a module may put another tensor in a buffer's place.
        found = (owner._buffers.get(leaf, owner._parameters.get(leaf)) for owner, leaf in self._mutable)
        return [_GONE if value is None else value.detach() for value in found]

    def _set(self, values: Iterable[Tensor]) -> None:
        """Give the mutable buffers values of the shapes that they began with."""
        for name, here, value in zip(self._names, self._mutable_buffers(), values, strict=True):
            if _alike(here, value):
                here.copy_(value)
            else:
                put_(self.module, {name: value})

    def keep(self) -> None:
        """Keep the mutable buffers as they are now, for `undo`."""
        if self._kept and all(map(_alike, self._kept, here := self._mutable_buffers())):
            torch._foreach_copy_(self._kept, here)

    def undo(self) -> None:
        """Give the mutable buffers the values that they had at the last `keep`."""
        self._set(self._kept)

    def buffers(self) -> Tensor:
        """The mutable buffers as one float64 vector, in order, complex ones as pairs; exact for integers to 2⁵³."""
        both = zip(self._kept, self._mutable_buffers(), strict=True)
        here = [value if _alike(kept, value) else kept for kept, value in both]
        parts = [_real(buffer).reshape(-1).to(CPU, torch.float64) for buffer in here]
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.float64)

    def named_buffers(self, values: Tensor) -> dict[str, Tensor]:
        """Such a vector as the mutable buffers by name, in their shapes, float64 or complex128; it may be viewed."""
        parts = values.split([_elements(buffer) for buffer in self._kept])
        return {
            name: (torch.complex(part[::2], part[1::2]) if buffer.is_complex() else part).view(buffer.shape)
            for name, buffer, part in zip(self._names, self._kept, parts, strict=True)
        }

    def load_buffers_(self, values: Tensor) -> None:
        """Copy such a vector into the mutable buffers."""
        self._set(self.named_buffers(values).values())

    def mean_buffers(self, rows: Tensor) -> Tensor:
        """One vector for several replicas' (replicas, elements): the mean of floating ones, else the largest."""
        parts = [torch.full((_elements(buffer),), _real(buffer).is_floating_point()) for buffer in self._kept]
        return torch.where(torch.cat(parts), rows.mean(0), rows.amax(0)) if parts else rows[:1].flatten()


_GONE = torch.empty(0, dtype=torch.bool, device="meta")
"""In the place of a buffer that the user's code has removed."""


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and other is not _GONE


def _places(module: nn.Module) -> dict[nn.Parameter, list[tuple[dict[str, nn.Parameter | None], str]]]:
    """For each parameter the dictionaries of layers that hold it, and its name there."""
    found: dict[nn.Parameter, list[tuple[dict[str, nn.Parameter | None], str]]] = {}
    for layer in module.modules():
        for leaf, parameter in layer._parameters.items():
            if parameter is not None:
                found.setdefault(parameter, []).append((layer._parameters, leaf))
    return found


def _place(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return module.get_submodule(path), leaf


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def _elements(tensor: Tensor) -> int:
    return 2 * tensor.numel() if tensor.is_complex() else tensor.numel()


@final
@dataclass(eq=False)
class ModuleGradients:
    """`GradientSource` of a task: forward and backward through the module.

    Dropout, and whatever else the user draws, is seeded by (seed, epoch, batch), so that a batch has one gradient
    at given parameters, whichever replica computes it. `begin` is told of each batch before it is made. `beside`:
    compute in a thread, so that fetches and pushes go on meanwhile; on a GPU in a stream of its own.
    """

    task: Task
    flat: FlatModule
    batches: Batches
    _: KW_ONLY
    seed: int
    precision: Precision | None = None
    begin: Callable[[int, int], object] = lambda epoch, batch: None
    beside: bool = False

    def __post_init__(self) -> None:
        on_gpu = self.beside and self.flat.device.type == "cuda"
        self._stream = torch.cuda.Stream(self.flat.device) if on_gpu else None

    async def gradient(self, epoch: int, batch: int) -> Gradient:
        """The gradient of the batch's loss, a mean or a sum with its weight, at the present parameters."""
        if self.beside:
            return await asyncio.to_thread(self._compute_beside, epoch, batch)
        return self._compute(epoch, batch)

    def keep(self) -> None:
        """Keep the module's mutable buffers as they are now."""
        self.flat.keep()

    def undo(self) -> None:
        """Give them back the values that they had at the last `keep`."""
        self.flat.undo()

    def _compute_beside(self, epoch: int, batch: int) -> Gradient:
        if self._stream is None:
            return self._compute(epoch, batch)
        # What the other thread has begun with parameters and past gradients comes first.
        self._stream.wait_stream(torch.cuda.default_stream(self.flat.device))
        with torch.cuda.stream(self._stream):
            gradient = self._compute(epoch, batch)
        # This thread waits for the GPU, so that the other one, which reads the loss, need not.
        self._stream.synchronize()
        return gradient

    def _compute(self, epoch: int, batch: int) -> Gradient:
        self.begin(epoch, batch)
        examples = moved(self.batches(epoch, batch), self.flat.device)
        seed_everything(derive(self.seed, "chance", epoch, batch))
        self.flat.cast_()
        with autocast(self.flat.device, self.precision):
            found = self.task.forward(self.flat.module, examples)
        # What `loss.backward()` comes to. What it checks before, `forward` or the engine has checked, and costs 20 µs.
        ones = torch.ones_like(found.loss)
        _engine_run_backward((found.loss,), (ones,), False, False, (), allow_unreachable=True, accumulate_grad=True)
        self.flat.settle()
        tensors, device = self.flat.take_gradients(), self.flat.device
        loss, weight = found.loss.detach().to(device), None
        if found.weight is not None:
            weight = torch.as_tensor(found.weight, dtype=loss.dtype, device=device).detach()
            loss = loss / weight
        return Gradient(tensors, loss, self.batches.size(batch), weight)
