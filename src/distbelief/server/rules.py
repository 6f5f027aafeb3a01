"""Update rules: what a shard does with an admitted gradient. Values; their state lives in the shard.

Each is one multi-tensor fused kernel, in place, and equals the torch optimizer of its name bit for bit.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import ClassVar, Protocol, final, runtime_checkable

import torch
from torch import Tensor

from distbelief.errors import UsageError
from distbelief.server.schedules import Schedule, check_rate

Vectors = Sequence[Tensor]


@runtime_checkable
class Rule(Protocol):
    """An update rule.

    1. `state` names the vectors that the rule keeps beside the parameters, each with the value that fills it at first.
    2. `update_` changes parameters and state in place and leaves the gradients as they are. All lists run in parallel:
       `state[k][i]` is the part of vector k that belongs to `parameters[i]`.
    3. `step`, a float32 scalar, counts the shard's updates from 1; `rate` is the learning rate, scaled as the
       admission policy says.
    """

    @property
    def lr(self) -> float | Schedule:
        """The learning rate, or its schedule."""

    @property
    def state(self) -> dict[str, float]:
        """Vectors that the rule keeps, and what fills them at first."""

    def update_(
        self, parameters: Vectors, gradients: Vectors, state: Sequence[Vectors], step: Tensor, rate: float
    ) -> None:
        """Apply one gradient."""


def _check(lr: float | Schedule, weight_decay: float, **fractions: float) -> None:
    check_rate(lr)
    if not weight_decay >= 0:
        raise UsageError(f"weight_decay must not be negative, but is {weight_decay!r}")
    for name, value in fractions.items():
        if not 0 <= value < 1:
            raise UsageError(f"{name} must lie in [0, 1), but is {value!r}")


@final
@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent, with momentum if asked for: `torch.optim.SGD(fused=True)`."""

    lr: float | Schedule
    momentum: float = 0.0
    _: KW_ONLY
    nesterov: bool = False
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _check(self.lr, self.weight_decay, momentum=self.momentum)
        if self.nesterov and not self.momentum:
            raise UsageError("nesterov needs a momentum above 0")

    @property
    def state(self) -> dict[str, float]:
        """A velocity, where there is momentum."""
        return {"momentum": 0.0} if self.momentum else {}

    def update_(
        self, parameters: Vectors, gradients: Vectors, state: Sequence[Vectors], step: Tensor, rate: float
    ) -> None:
        """v ← momentum·v + g; w ← w − rate·v."""
        torch._fused_sgd_(
            list(parameters),
            list(gradients),
            list(state[0]) if state else [],
            weight_decay=self.weight_decay,
            momentum=self.momentum,
            lr=rate,
            dampening=0.0,
            nesterov=self.nesterov,
            maximize=False,
            # A velocity of zeros makes the first step what torch makes it by copying the gradient.
            is_first_step=False,
        )


@final
@dataclass(frozen=True)
class Adagrad:
    """Adagrad as in section 4.1: rate_i = lr / sqrt(Σ g_i²), the present gradient included and no epsilon.

    The sum begins at 2⁻¹²⁶, the smallest normal float32: too small to be seen beside any gradient worth a step, so a
    coordinate's first step is lr·sign(g), and enough that 0/0 cannot occur. With a small epsilon instead, a gradient of
    10⁻²⁵ would move a weight by 10¹² times what it should. Equals
    `torch.optim.Adagrad(fused=True, eps=0, initial_accumulator_value=2**-126)`.
    """

    INITIAL: ClassVar[float] = 2.0**-126

    lr: float | Schedule
    _: KW_ONLY
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _check(self.lr, self.weight_decay)

    @property
    def state(self) -> dict[str, float]:
        """The sum of the squared gradients."""
        return {"sum": self.INITIAL}

    def update_(
        self, parameters: Vectors, gradients: Vectors, state: Sequence[Vectors], step: Tensor, rate: float
    ) -> None:
        """s ← s + g²; w ← w − rate·g/√s."""
        torch._fused_adagrad_(
            list(parameters),
            list(gradients),
            list(state[0]),
            [step] * len(parameters),
            lr=rate,
            lr_decay=0.0,
            weight_decay=self.weight_decay,
            eps=0.0,
            maximize=False,
        )


@dataclass(frozen=True)
class _Moments(ABC):
    """What Adam and AdamW have in common: means of the gradient and of its square. It counts the shard's updates."""

    lr: float | Schedule
    _: KW_ONLY
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _check(self.lr, self.weight_decay, beta1=self.betas[0], beta2=self.betas[1])

    @property
    @abstractmethod
    def _kernel(self) -> Callable[..., None]: ...

    @property
    def state(self) -> dict[str, float]:
        """Running means of the gradient and of its square."""
        return {"mean": 0.0, "square": 0.0}

    def update_(
        self, parameters: Vectors, gradients: Vectors, state: Sequence[Vectors], step: Tensor, rate: float
    ) -> None:
        """m, s ← the means; w ← w − rate·m̂/(√ŝ + eps)."""
        self._kernel(
            list(parameters),
            list(gradients),
            list(state[0]),
            list(state[1]),
            [],
            [step] * len(parameters),
            lr=rate,
            beta1=self.betas[0],
            beta2=self.betas[1],
            weight_decay=self.weight_decay,
            eps=self.eps,
            amsgrad=False,
            maximize=False,
        )


@final
@dataclass(frozen=True)
class Adam(_Moments):
    """Adam with the weight decay in the gradient: `torch.optim.Adam(fused=True)`."""

    @property
    def _kernel(self) -> Callable[..., None]:
        return torch._fused_adam_


@final
@dataclass(frozen=True)
class AdamW(_Moments):
    """Adam with the weight decay beside the gradient: `torch.optim.AdamW(fused=True)`."""

    weight_decay: float = field(default=0.01, kw_only=True)

    @property
    def _kernel(self) -> Callable[..., None]:
        return torch._fused_adamw_
