"""TensorBoard as a callback."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, final

from distbelief.errors import UsageError
from distbelief.observe.events import STAMP
from distbelief.observe.progress import sentence

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_TRAINING = ("loss", "learning_rate", "gradient_norm", "examples_per_second")
_FLUSH_S = 10
"""What a controller that is killed may have told in vain."""


class _HasDirectory(Protocol):
    directory: Path | Any


@final
class TensorBoard:
    """Writes a run for TensorBoard: `db.train(…, callbacks=[db.TensorBoard()])`.

    `directory`: where event files go; None is `tensorboard` in the run's own directory. The step of every point is the
    run's examples. Scalars: `evaluation/NAME`; `train/loss`, `train/learning_rate`, `train/gradient_norm` and
    `train/examples_per_second`; and of each replica `examples_per_second/replica_R` and `staleness/replica_R`. Deaths
    are texts. A run that is resumed goes on in the same directory, and hides what was written after the checkpoint that
    it goes on from.

    Raises `UsageError` where tensorboard is not installed.
    """

    def __init__(self, directory: str | Path | None = None) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UsageError("TensorBoard is not installed: pip install tensorboard") from error
        self._make = SummaryWriter
        self._directory = None if directory is None else Path(directory)
        self._writer: SummaryWriter | None = None
        self._run: Path | None = None
        """The directory of the run that is being written."""
        self._examples = 0

    def __call__(self, event: dict[str, Any], run: _HasDirectory) -> None:
        """Write what an event says."""
        # A run that another callback has ended is never told to be stopped: the next one begins all the same.
        if event["event"] == "resumed" or run.directory != self._run:
            self._open(run.directory, event)
        if event["event"] == "progress":
            self._examples = event["examples"]
        if self._writer is not None:
            self._write(self._writer, event)
        if event["event"] == "stopped":
            self._close()

    def _open(self, directory: Path | Any, first: dict[str, Any]) -> None:
        self._close()
        if self._directory is None and not isinstance(directory, Path):
            raise UsageError(f"event files cannot be at {directory}: give a folder, as in TensorBoard('tensorboard')")
        resumed = first["event"] == "resumed"
        after = first["examples"] if resumed else None
        # What stands at the step of the checkpoint itself belongs to it.
        purge_step = (0 if after is None else after + 1) if resumed else None
        self._run, self._examples = directory, after or 0
        target = self._directory or directory / "tensorboard"
        self._writer = self._make(str(target), purge_step=purge_step, flush_secs=_FLUSH_S)

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer = self._run = None

    def _write(self, writer: "SummaryWriter", event: dict[str, Any]) -> None:
        scalars: dict[str, Any] = {}
        match event["event"]:
            case "evaluation":
                scalars = {f"evaluation/{name}": value for name, value in event.items() if name not in STAMP}
            case "progress":
                scalars = {f"train/{name}": event.get(name) for name in _TRAINING}
                for replica in event["replicas"]:
                    for name in ("examples_per_second", "staleness"):
                        scalars[f"{name}/replica_{replica['replica']}"] = replica[name]
            case "died":
                writer.add_text("deaths", sentence("died", event), self._examples)
        for name, value in scalars.items():
            if value is not None:
                writer.add_scalar(name, value, event["examples"])
