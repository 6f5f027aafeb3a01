"""Ways for a replica to die at a named instant, once a run: parts of a task and a method that kill their process."""

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from distbelief.server.admission import Asynchronous, Decision
from distbelief.server.rules import SGD


@dataclass(frozen=True)
class Once:
    """Ends the first process that gets `after` times here; `how` is the signal."""

    marker: Path
    after: int
    how: signal.Signals = signal.SIGKILL

    def __call__(self) -> None:
        count = _counts[self.marker] = _counts.get(self.marker, 0) + 1
        if count == self.after:
            try:
                os.close(os.open(self.marker, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return
            os.kill(os.getpid(), self.how)


_counts: dict[Path, int] = {}


@dataclass(frozen=True)
class DyingLoss:
    """Dies between the forward and the backward pass: before the hand-over, and after all shards of the push before."""

    once: Once

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        self.once()
        return nn.functional.cross_entropy(prediction, target)


@dataclass(frozen=True)
class DyingAdmission:
    """Dies when a shard decides on a push, before anything is changed there."""

    once: Once

    @property
    def round(self) -> int:
        return 1

    @property
    def lead(self) -> None:
        return None

    def admit(self, staleness: int, held: int, living: int) -> Decision:
        self.once()
        return Asynchronous().admit(staleness, held, living)


@dataclass(frozen=True)
class DyingRule:
    """Dies inside the kernel, when half of the parameters have been changed."""

    once: Once
    lr: float = 0.1

    @property
    def state(self) -> dict[str, float]:
        return {}

    def update_(
        self,
        parameters: Sequence[Tensor],
        gradients: Sequence[Tensor],
        state: Sequence[Sequence[Tensor]],
        step: Tensor,
        rate: float,
    ) -> None:
        half = (len(parameters) + 1) // 2
        SGD(rate).update_(parameters[:half], gradients[:half], [], step, rate)
        self.once()
        if rest := parameters[half:]:
            SGD(rate).update_(rest, gradients[half:], [], step, rate)
