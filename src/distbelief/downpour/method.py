"""The configuration of Downpour SGD: an immutable value, validated when it is constructed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Unpack, final

from torch.optim import Optimizer

from distbelief.allocation import Replica, ReplicaParts
from distbelief.checks import check_whole
from distbelief.downpour.ledger import Ledger
from distbelief.errors import UsageError
from distbelief.server.admission import Admission, Asynchronous
from distbelief.server.block import AVERAGE
from distbelief.server.groups import check_patterns, remarks
from distbelief.server.rules import Adagrad, Rule, resolved_rule


@final
@dataclass(frozen=True, kw_only=True)
class Downpour:
    """Asynchronous SGD with a sharded parameter server (section 4.1).

    `replicas`: number of copies of the model that train concurrently; "auto": one per core of the machine, at most 4.
    (least, most), such as (4, 16): the run begins once `least` of them have come; the others join when there are
    machines for them, and leave when these go. What has begun never waits for them.
    `shards`: number of parts of the parameter vector; "auto": one per replica for a vector of a million elements or
    more, else 1.
    `batch_size`: examples in a batch of one replica; None: the loader's own, else 32.
    `optimizer`: the rule of the shards. `local_optimizer`: the rule of the replica's local step between fetches (line 8
    of the listing); None: the shards' rule. It has no effect if every step begins with a fetch.
    `n_fetch`, `n_push`: batches between fetches, and between pushes. A push is the sum of its batches' gradients.
    `warmstart`: examples that a single replica works on before the others start.
    `clip_norm`: largest 2-norm of a push. `tolerate`: number of batches that may be set aside; one more ends the run. A
    batch is set aside if three replicas die at it, or if the user's code fails twice at it. `overlap`: batches by which
    fetches and pushes may lag behind, 0 or 1; None: the engine's, 1 on a cluster and else 0.
    `average`: decay of an exponential moving average of the parameters, such as 0.999; None: no average. The shards
    keep it: after each update, average ← decay·average + (1 - decay)·parameters. An update without a gradient for a
    parameter changes neither the parameter nor its average.
    """

    replicas: int | tuple[int, int] | Literal["auto"] = "auto"
    shards: int | Literal["auto"] = "auto"
    batch_size: int | None = None
    optimizer: Rule = field(default_factory=lambda: Adagrad(0.01))
    local_optimizer: Rule | None = None
    n_fetch: int = 1
    n_push: int = 1
    warmstart: int = 0
    admission: Admission = field(default_factory=Asynchronous)
    clip_norm: float | None = None
    tolerate: int = 0
    overlap: Literal[0, 1] | None = None
    average: float | None = None

    def __post_init__(self) -> None:
        for name in ("replicas", "shards", "batch_size", "n_fetch", "n_push"):
            value = getattr(self, name)
            if name == "replicas" and isinstance(value, tuple | list):
                _check_range(value)
            elif (name, value) not in (("replicas", "auto"), ("shards", "auto"), ("batch_size", None)):
                check_whole(name, value)
        for name in ("warmstart", "tolerate"):
            check_whole(name, getattr(self, name), least=0)
        if self.clip_norm is not None and not 0 < self.clip_norm < math.inf:
            raise UsageError(f"clip_norm must be a positive number or None, not {self.clip_norm!r}")
        if self.overlap not in (None, 0, 1):
            raise UsageError(f"overlap must be 0, 1 or None, not {self.overlap!r}")
        if self.average is not None and not (isinstance(self.average, float) and 0 < self.average < 1):
            raise UsageError(f"average must be a decay between 0 and 1, such as 0.999, or None, not {self.average!r}")
        _check_rule("optimizer", self.optimizer)
        if self.local_optimizer is not None:
            _check_rule("local_optimizer", self.local_optimizer)
        if not isinstance(self.admission, Admission) or isinstance(self.admission, type):
            raise UsageError(
                f"admission must be a policy such as Asynchronous() or Buffered(4), not {self.admission!r}"
            )
        if self.admission.round > 1 and (self.overlap or self.n_fetch > 1):
            raise UsageError(
                f"{self.admission} needs overlap=0 and n_fetch=1: what is computed from parameters older than its "
                "round's comes late for it"
            )

    @property
    def most_replicas(self) -> int | None:
        """The largest number of copies that train concurrently; None: "auto"."""
        return None if isinstance(self.replicas, str) else self._range[1]

    @property
    def least_replicas(self) -> int | None:
        """The number of copies without which the run does not begin; None: "auto"."""
        return None if isinstance(self.replicas, str) else self._range[0]

    @property
    def _range(self) -> tuple[int, int]:
        """The least and the largest number of replicas, which is not "auto"."""
        assert not isinstance(self.replicas, str)
        return (self.replicas, self.replicas) if isinstance(self.replicas, int) else self.replicas

    @property
    def local_rule(self) -> Rule | None:
        """The rule of the local step, or None where a fetch replaces the parameters before they are used again."""
        return None if self.n_fetch == 1 else self.local_optimizer or self.optimizer

    @property
    def kept(self) -> dict[str, float | None]:
        """State vectors of a run by name, each with its initial fill value; None: it starts as the parameters."""
        return {**self.optimizer.state, **({} if self.average is None else {AVERAGE: None})}

    def over(self, examples: int | None) -> "Downpour":
        """Return the method with its schedules resolved for a run that ends after `examples`."""
        optimizer, *local = (resolved_rule(rule, examples) for rule in self._rules)
        return replace(self, optimizer=optimizer, local_optimizer=local[0] if local else None)

    @property
    def _rules(self) -> list[Rule]:
        return [rule for rule in (self.optimizer, self.local_optimizer) if rule is not None]

    def check_names(self, names: Sequence[str]) -> None:
        """Raise `UsageError` for a parameter group whose pattern matches none of the model's parameters."""
        for rule in self._rules:
            check_patterns(rule, names)

    def remarks(self, trained: Sequence[str], end: int | None) -> list[str]:
        """Describe the settings that have no effect in a run that trains `trained` and ends after `end` examples."""
        unused = "local_optimizer has no effect with n_fetch=1: a fetch replaces the parameters after each step"
        found = [line for rule in self._rules for line in remarks(rule, trained, end)]
        found += [unused] if self.local_optimizer and self.local_rule is None else []
        if self.warmstart and self.most_replicas == 1:
            found.append("warmstart has no effect with one replica, which works alone in any case")
        if isinstance(self.replicas, tuple) and self.admission.round > self.replicas[0]:
            found.append(
                f"{self.admission} with replicas={self.replicas}: while fewer are there, a round closes with fewer "
                f"pushes and is divided by as many as ever, a smaller step; with {self.replicas[0]} or fewer it is not"
            )
        return list(dict.fromkeys(found))

    def decided(self, *, replicas: int, shards: int, batch_size: int) -> "Downpour":
        """Return the method with these numbers instead of "auto" and None. (least, most) stays as it is."""
        kept = self.replicas if isinstance(self.replicas, tuple) else replicas
        return replace(self, replicas=kept, shards=shards, batch_size=batch_size)

    def allocator(self, examples: int, *, epochs: int | None, limit: int | None) -> Ledger:
        """Create the ledger that hands out the data of a run. Call `decided` first."""
        assert self.batch_size is not None
        least, most = self._range
        return Ledger(
            examples=examples,
            batch_size=self.batch_size,
            replicas=most,
            epochs=epochs,
            limit=limit,
            warmstart=self.warmstart,
            quorum=least if self.admission.round > 1 or isinstance(self.replicas, tuple) else 1,
        )

    def replica(self, **parts: Unpack[ReplicaParts]) -> Replica:
        """Create a replica that trains one copy of the model by this method."""
        # Imported here, since `downpour.replica` imports this module.
        from distbelief.downpour.replica import DownpourReplica

        return DownpourReplica(self, **parts)


def _check_range(value: Sequence[object]) -> None:
    """Raise `UsageError` unless `value` is the least and the largest number of replicas."""
    whole = isinstance(value, tuple) and len(value) == 2 and all(type(number) is int for number in value)
    if not whole or not 1 <= value[0] <= value[1]:  # type: ignore[operator]
        raise UsageError(
            "replicas must be a whole number, or the least and the most of them, two whole numbers of 1 or more with "
            f"the smaller first, such as (4, 16), not {value!r}"
        )


def _check_rule(name: str, rule: object) -> None:
    """Raise `UsageError` unless `rule` is a rule. The message names the replacement for torch's parameter groups."""
    # `isinstance(rule, Rule)` also holds for a rule class that was not instantiated, since it has the same attributes.
    if isinstance(rule, Rule) and not isinstance(rule, type):
        return
    wanted = f"{name} must be one of SGD, Adagrad, Adam, AdamW, such as Adagrad(0.01)"
    if not isinstance(rule, Sequence | Optimizer | type) or isinstance(rule, str):
        raise UsageError(f"{wanted}, not {rule!r}")
    # The repr of an optimizer or of a list of tensors can run over pages.
    what = f"the class {rule.__name__}" if isinstance(rule, type) else f"a value of type {type(rule).__name__}"
    raise UsageError(
        f"{wanted}, not {what}: it lives in the shards, one for all parameters. Those that want another treatment get "
        'it by their names, as in AdamW(3e-4, weight_decay=0.1, groups={"*.bias": {"weight_decay": 0}})'
    )
