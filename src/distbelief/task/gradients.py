"""The user's module as a source of gradients: where modules end and the parameter vector begins."""

import asyncio
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import KW_ONLY, dataclass
from typing import Literal, final

import torch
from torch import Tensor, nn

from distbelief.chance import derive
from distbelief.ports import Gradient
from distbelief.server.layout import Layout
from distbelief.task.data import Batches, seed_everything
from distbelief.task.nested import moved
from distbelief.task.task import Task, trainable

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


class FlatModule:
    """A module whose trained parameters are views of one flat vector, on a device of choice.

    `mutable_buffers` names the buffers that training changes; replicas tell each other of these and of no others.
    Parameters of another float type than the vector's cannot be views: `refresh` casts them from it. The module keeps
    its frozen parameters and its buffers to itself.
    """

    def __init__(
        self, module: nn.Module, layout: Layout, mutable_buffers: Sequence[str] = (), device: torch.device = CPU
    ) -> None:
        names = [name for name, _ in trainable(module)]
        self.module = module.to(device)
        # By name, since what moves may become another object.
        self.parameters = [module.get_parameter(name) for name in names]
        self.device = device
        self._names = mutable_buffers
        self.layout = layout
        self.vector = torch.zeros(layout.length, dtype=layout.dtype, device=device)
        views = layout.views(self.vector)
        layout.gather_(self.vector, [parameter.detach() for parameter in self.parameters])
        self._cast: tuple[list[Tensor], list[Tensor]] = ([], [])
        for parameter, view in zip(self.parameters, views, strict=True):
            if parameter.dtype == layout.dtype:
                parameter.data = view
            else:
                self._cast[0].append(parameter.data)
                self._cast[1].append(view)

    def refresh(self) -> None:
        """Make the parameters that are no views equal to the vector."""
        if self._cast[0]:
            torch._foreach_copy_(*self._cast)

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
        return [self.module.get_buffer(name) for name in self._names]

    def buffers(self) -> Tensor:
        """The mutable buffers as one float64 vector, in order, complex ones as pairs; exact for integers to 2⁵³."""
        parts = [_real(buffer.detach()).reshape(-1).to(CPU, torch.float64) for buffer in self._mutable_buffers()]
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.float64)

    def named_buffers(self, values: Tensor) -> dict[str, Tensor]:
        """Such a vector as the mutable buffers by name, in their shapes, float64 or complex128; it may be viewed."""
        mutable_buffers = dict(zip(self._names, self._mutable_buffers(), strict=True))
        parts = values.split([_elements(buffer) for buffer in mutable_buffers.values()])
        return {
            name: (torch.complex(part[::2], part[1::2]) if buffer.is_complex() else part).view(buffer.shape)
            for (name, buffer), part in zip(mutable_buffers.items(), parts, strict=True)
        }

    def load_buffers_(self, values: Tensor) -> None:
        """Copy such a vector into the mutable buffers."""
        for name, value in self.named_buffers(values).items():
            self.module.get_buffer(name).copy_(value)

    def mean_buffers(self, rows: Tensor) -> Tensor:
        """One vector for several replicas' (replicas, elements): the mean of floating ones, else the largest."""
        parts = [
            torch.full((_elements(buffer),), _real(buffer).is_floating_point()) for buffer in self._mutable_buffers()
        ]
        return torch.where(torch.cat(parts), rows.mean(0), rows.amax(0)) if parts else rows[:1].flatten()


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def _elements(tensor: Tensor) -> int:
    return 2 * tensor.numel() if tensor.is_complex() else tensor.numel()


@final
@dataclass(eq=False)
class ModuleGradients:
    """`GradientSource` of a task: forward and backward through the module.

    Dropout, and whatever else the user draws, is seeded by (seed, epoch, batch), so that a batch has one gradient
    at given parameters, whichever replica computes it. `beside`: compute in a thread, so that fetches and pushes go on
    meanwhile; on a GPU in a stream of its own.
    """

    task: Task
    flat: FlatModule
    batches: Batches
    _: KW_ONLY
    seed: int
    precision: Precision | None = None
    beside: bool = False

    def __post_init__(self) -> None:
        on_gpu = self.beside and self.flat.device.type == "cuda"
        self._stream = torch.cuda.Stream(self.flat.device) if on_gpu else None

    async def gradient(self, epoch: int, batch: int) -> Gradient:
        """The gradient of the batch's loss, a mean or a sum with its weight, at the present parameters."""
        if self.beside:
            return await asyncio.to_thread(self._compute_beside, epoch, batch)
        return self._compute(epoch, batch)

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
        examples = moved(self.batches(epoch, batch), self.flat.device)
        seed_everything(derive(self.seed, "chance", epoch, batch))
        self.flat.refresh()
        with autocast(self.flat.device, self.precision):
            found = self.task.forward(self.flat.module, examples)
        found.loss.backward()
        tensors, device = self.flat.take_gradients(), self.flat.device
        loss, weight = found.loss.detach().to(device), None
        if found.weight is not None:
            weight = torch.as_tensor(found.weight, dtype=loss.dtype, device=device).detach()
            loss = loss / weight
        return Gradient(tensors, loss, self.batches.size(batch), weight)
