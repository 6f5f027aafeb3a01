"""Update rules: how a shard applies an admitted gradient. A rule is an immutable value; its state lives in the shard.

Each rule runs one multi-tensor fused kernel in place. Its results equal the torch optimizer of its name bit for bit.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any, ClassVar, Protocol, Self, final, runtime_checkable

import torch
from torch import Tensor

from distbelief.errors import UsageError
from distbelief.server.schedules import Schedule, check_rate, rate, resolved_lr

Vectors = Sequence[Tensor]
Groups = Mapping[str, Mapping[str, Any]]
"""Options that override those of a rule, by the pattern of parameter names that they apply to."""


@runtime_checkable
class Rule(Protocol):
    """An update rule.

    1. `state` names the vectors that the rule keeps besides the parameters, each with its initial fill value.
    2. `update_` changes parameters and state in place and does not change the gradients. The lists correspond by index:
       `state[k][i]` is the part of vector k that belongs to `parameters[i]`.
    3. `step`, a float32 scalar, counts updates from 1: the shard's, or those of a replica's local step. `rate` is the
       learning rate; a shard multiplies it by the `scale` of the admission decision.
    """

    @property
    def lr(self) -> float | Schedule:
        """The learning rate, or its schedule."""

    @property
    def state(self) -> dict[str, float]:
        """State vectors by name, each with its initial fill value."""

    def update_(
        self, parameters: Vectors, gradients: Vectors, state: Sequence[Vectors], step: Tensor, rate: float
    ) -> None:
        """Apply one gradient."""


def _check(lr: float | Schedule, weight_decay: float, **fractions: float) -> None:
    check_rate(lr)
    if not (isinstance(weight_decay, int | float) and weight_decay >= 0):
        raise UsageError(f"weight_decay must not be negative, but is {weight_decay!r}")
    for name, value in fractions.items():
        if not (isinstance(value, int | float) and 0 <= value < 1):
            raise UsageError(f"{name} must lie in [0, 1), but is {value!r}")


class _Grouped(ABC):
    """A rule with parameter groups: `groups={"*.bias": {"weight_decay": 0, "lr": 0.1}}`.

    Keys are shell patterns of parameter names; the first that matches a name wins. Values override options of the rule
    for these parameters. The results equal those of torch's parameter groups.
    """

    groups: Groups

    def __post_init__(self) -> None:
        self._check()
        groups = _options(type(self).__name__, self.groups, [name for name in vars(self) if name != "groups"])
        # The rule is immutable, so it keeps a copy that the caller cannot change.
        object.__setattr__(self, "groups", groups)
        # Building the variants checks the options of every group.
        _ = self.variants

    @abstractmethod
    def _check(self) -> None:
        """Raise `UsageError` for options that cannot work."""

    @property
    def variants(self) -> dict[str, Self]:
        """The rule of each group, by its pattern."""
        found = {}
        for pattern, options in self.groups.items():
            try:
                found[pattern] = replace(self, groups={}, **options)  # type: ignore[type-var]
            except UsageError as error:
                raise UsageError(f"in the group {pattern!r}: {error}") from error
        return found


def _options(rule: str, groups: object, known: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Copy a rule's groups. Raises `UsageError` if they are malformed or set an option that the rule does not have."""
    example = 'such as {"*.bias": {"weight_decay": 0}}'
    if not isinstance(groups, Mapping):
        raise UsageError(f"groups must be options by patterns of parameter names, {example}, not {groups!r}")
    for pattern, options in groups.items():
        if not isinstance(pattern, str) or not isinstance(options, Mapping):
            raise UsageError(f"a group is a pattern and its options, {example}, not {pattern!r}: {options!r}")
        if alien := [name for name in options if name not in known]:
            raise UsageError(f"{rule} has no option {alien[0]!r}, in the group {pattern!r}: it has {', '.join(known)}")
    # A tuple that went through JSON, such as `betas`, comes back as a list.
    return {
        pattern: {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
        for pattern, options in groups.items()
    }


@final
@dataclass(frozen=True)
class SGD(_Grouped):
    """Stochastic gradient descent, with momentum if asked for: `torch.optim.SGD(fused=True)`."""

    lr: float | Schedule
    momentum: float = 0.0
    _: KW_ONLY
    nesterov: bool = False
    weight_decay: float = 0.0
    groups: Groups = field(default_factory=dict)

    def _check(self) -> None:
        _check(self.lr, self.weight_decay, momentum=self.momentum)
        if self.nesterov and not self.momentum:
            raise UsageError("nesterov needs a momentum above 0")

    @property
    def state(self) -> dict[str, float]:
        """The velocity, if the rule or any of its groups has momentum."""
        return {"momentum": 0.0} if self.momentum or any(rule.momentum for rule in self.variants.values()) else {}

    def update_(
        self, parameters: Vectors, gradients: Vectors, state: Sequence[Vectors], step: Tensor, rate: float
    ) -> None:
        """v ← momentum·v + g; w ← w − rate·v."""
        torch._fused_sgd_(
            list(parameters),
            list(gradients),
            list(state[0]) if self.momentum else [],
            weight_decay=self.weight_decay,
            momentum=self.momentum,
            lr=rate,
            dampening=0.0,
            nesterov=self.nesterov,
            maximize=False,
            # On its first step torch copies the gradient to the velocity. Zeros and no dampening give the same result.
            is_first_step=False,
        )


@final
@dataclass(frozen=True)
class Adagrad(_Grouped):
    """Adagrad as in section 4.1: rate_i = lr / sqrt(Σ g_i²), where the sum includes the current gradient. No epsilon.

    The sum starts at 2⁻¹²⁶, the smallest normal float32. It is negligible beside any gradient worth a step, so the
    first step of a coordinate is lr·sign(g). It is not 0, so 0/0 cannot occur. With a small epsilon instead, a gradient
    of 10⁻²⁵ would move a weight by 10¹² times what it should. Equals
    `torch.optim.Adagrad(fused=True, eps=0, initial_accumulator_value=2**-126)`.
    """

    INITIAL: ClassVar[float] = 2.0**-126

    lr: float | Schedule
    _: KW_ONLY
    weight_decay: float = 0.0
    groups: Groups = field(default_factory=dict)

    def _check(self) -> None:
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
class _Moments(_Grouped):
    """Base of Adam and AdamW: running means of the gradient and of its square, bias-corrected by `step`.

    `step` counts all updates of the shard, including those in which a parameter has no gradient.
    """

    lr: float | Schedule
    _: KW_ONLY
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    groups: Groups = field(default_factory=dict)

    def _check(self) -> None:
        if not isinstance(self.betas, tuple | list) or len(self.betas) != 2:
            raise UsageError(f"betas must be two numbers, such as (0.9, 0.999), not {self.betas!r}")
        _check(self.lr, self.weight_decay, beta1=self.betas[0], beta2=self.betas[1])
        if not (isinstance(self.eps, int | float) and self.eps >= 0):
            raise UsageError(f"eps must not be negative, but is {self.eps!r}")

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
    """Adam with L2 weight decay, which is added to the gradient: `torch.optim.Adam(fused=True)`."""

    @property
    def _kernel(self) -> Callable[..., None]:
        return torch._fused_adam_


@final
@dataclass(frozen=True)
class AdamW(_Moments):
    """Adam with decoupled weight decay: `torch.optim.AdamW(fused=True)`."""

    weight_decay: float = field(default=0.01, kw_only=True)

    @property
    def _kernel(self) -> Callable[..., None]:
        return torch._fused_adamw_


def resolved_rule(rule: Rule, examples: int | None) -> Rule:
    """Return the rule with its schedules, and those of its groups, resolved for a run that ends after `examples`.

    A user-defined rule is returned unchanged. Raises `UsageError` if a schedule needs an end that the run lacks.
    """
    if not isinstance(rule, _Grouped):
        # Evaluate the rate once, so that an unresolved schedule raises its error here and not in a shard.
        rate(rule.lr, 0)
        return rule
    groups = {
        pattern: {name: resolved_lr(value, examples) if name == "lr" else value for name, value in options.items()}
        for pattern, options in rule.groups.items()
    }
    return replace(rule, lr=resolved_lr(rule.lr, examples), groups=groups)  # type: ignore[type-var]
