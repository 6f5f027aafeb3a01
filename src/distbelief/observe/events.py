"""What happens in a run, told as it happens: events, which are kept, and the present status, which is not.

Events are JSON objects, one a line, in `events.jsonl`. Each has "event" and "seconds" (since the first lease; 0 before
it), and:

    started      engine, replicas, devices, shards, parameters, batch_size, examples_per_epoch, chosen_by, seed,
                 epochs, examples, seconds_limit, precision, emulated: whether the CPU has no instructions for it,
                 monitor: the metric that evaluations are judged by, or None,
                 remarks: a sentence a setting that has no effect, or another one than it may seem
    replica      replica, incarnation, pid                        a replica's process was started
    died         replica, incarnation, status, error, account     it ended before its work did; what its leases came to
    left         the same                                         it was told to leave (SIGTERM, a machine that is taken
                                                                  away), and has: no failure. What it gave back itself
                                                                  is not in this account
    poisoned     epoch, batch, examples: their indices, error     a batch was set aside: replicas died or failed at it
    machine      machine, there                                   simulated: a shard's machine, or the controller's, is
                                                                  dead (there is false), or back
    progress     examples, updates, loss, examples_per_second, replicas: [{replica, examples_per_second, staleness}],
                 learning_rate: of the next update, for parameters in no group,
                 gradient_norm: mean 2-norm of pushes before they are clipped, of those that were looked at, or None
    evaluation   the row that is added to the history, and whether it is the best so far
    resumed      examples (None if there was nothing to resume), damaged: a sentence a damaged checkpoint,
                 fresh_state: the optimizer's vectors that the checkpoint does not hold,
                 newly_frozen, newly_trained: names of parameters that were trained and are not any more, or vice versa,
                 other_data: whether the first batch is not the one that the run began with,
                 earlier: where the files of a run without a checkpoint were moved, or None
    renewed      name: of a file that another program had removed, and that is there again; once for each
    checkpoint   path, error (one of them is None), capture_s: for how long the controller copied the run
    evaluating   training has ended, the last evaluation begins
    stopped      stopped_by, epoch, examples, updates, refused: examples whose gradients were not finite, train_loss
"""

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

STAMP = ("event", "epoch", "examples", "updates", "seconds", "best")
"""What an event of an evaluation holds beside its metrics."""


@dataclass(frozen=True)
class ReplicaStatus:
    """One replica as seen now. Speeds are over about the last two seconds."""

    replica: int
    state: str
    """awaited, starting, ready, working, waiting, silent, leaving, done or dead."""
    examples_per_second: float = 0.0
    staleness: int = 0
    restarts: int = 0


@dataclass(frozen=True)
class Status:
    """A run as seen now."""

    seconds: float = 0.0
    examples: int = 0
    updates: int = 0
    epoch: float = 0.0
    loss: float | None = None
    """Mean over about the last two seconds, of the replicas' own batches."""
    examples_per_second: float = 0.0
    fraction: float = 0.0
    """How much of the run is over."""
    replicas: tuple[ReplicaStatus, ...] = ()
    learning_rate: float | None = None
    """Of the next update, for parameters that are in no group."""
    gradient_norm: float | None = None
    """Mean 2-norm of pushes before they are clipped; of a push a second and replica, or of all where they are."""

    @property
    def remaining_s(self) -> float | None:
        """Seconds that the run will still take, if it goes on as it has so far."""
        return self.seconds * (1 - self.fraction) / self.fraction if 0 < self.fraction < 1 else None


def how_ended(status: int) -> str:
    """The end of a process in words, by its exit status: negative for a signal."""
    if status >= 0:
        return f"exit code {status}"
    if -status == signal.SIGKILL:
        return "SIGKILL: the machine may be out of memory"
    return next((known.name for known in signal.Signals if known == -status), f"signal {-status}")


def died_of(event: Mapping[str, Any]) -> str:
    """What a replica died of, in a line, by the event that tells of its death, whatever stands in it."""
    error, status = event.get("error"), event.get("status")
    if isinstance(error, str) and error.strip():
        return error.strip().splitlines()[0]
    return how_ended(status) if isinstance(status, int) else "unknown"


class Observer(Protocol):
    """Who is told."""

    def event(self, event: str, seconds: float, **content: Any) -> None:
        """Something happened."""

    def status(self, status: Status) -> None:
        """This is how it stands; called several times a second."""
