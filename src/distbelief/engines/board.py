"""The board: memory on which replicas write how far they are, and the controller when to stop."""

from typing import NamedTuple, cast, final

import torch
from torch import Tensor

from distbelief.downpour.replica import Progress
from distbelief.server.client import Client


class Row(NamedTuple):
    """What one replica has done since its start."""

    steps: float = 0
    examples: float = 0
    losses: float = 0
    """Batches whose loss was finite."""
    loss: float = 0
    """Sum over these."""
    pushes: float = 0
    rejected: float = 0
    staleness: float = 0
    """Of its last push."""
    fetched_bytes: float = 0
    pushed_bytes: float = 0

    @classmethod
    def of(cls, progress: Progress, client: Client) -> "Row":
        """What a replica at work has done."""
        p = progress
        bytes_moved = client.fetched_bytes, client.pushed_bytes
        return cls(p.steps, p.examples, p.losses, p.loss, p.pushes, p.rejected, p.staleness, *bytes_moved)

    def plus(self, other: "Row") -> "Row":
        """Field by field."""
        return Row(*(a + b for a, b in zip(self, other, strict=True)))


_FIELDS = len(Row._fields)
_STOP = 0
_REQUESTS = 1
_HEAD = 8


@final
class Board:
    """Rows of float64: one a replica for progress, one a replica for the buffers of its module.

    Buffers are large, and wanted a few times a minute only. So a replica publishes them after its first step, after the
    first step that follows a request, and at the end of each lease; in between its row is older than its module.

    A row is written by its replica alone and read at any time; a reader may see a step's row half written, which is a
    fault of one step in a figure for the eye. `memory` is uint8, `nbytes` of zeros, the caller's; all who look into it
    see the same board.
    """

    def __init__(self, memory: Tensor, replicas: int, buffers: int) -> None:
        numbers = memory[: self.nbytes(replicas, buffers)].view(torch.float64)
        self._cells = cast("memoryview[float]", numbers.numpy().data)
        self._answers = _HEAD
        self._rows = self._answers + replicas
        start = self._rows + replicas * _FIELDS
        self.buffers = numbers[start : start + replicas * buffers].view(replicas, buffers)

    @staticmethod
    def nbytes(replicas: int, buffers: int) -> int:
        """Bytes of memory that a board takes."""
        return 8 * (_HEAD + replicas * (1 + _FIELDS + buffers))

    @property
    def stopping(self) -> bool:
        """Whether replicas are to stop after their present batch."""
        return self._cells[_STOP] != 0

    def stop(self) -> None:
        """Ask all replicas to stop."""
        self._cells[_STOP] = 1

    def request_buffers(self) -> None:
        """Ask all replicas to publish their buffers after the step they are at."""
        self._cells[_REQUESTS] += 1

    def awaits_buffers(self, replica: int) -> bool:
        """Whether a replica has not published its buffers since the last request or, without one, at all."""
        return self._cells[self._answers + replica] != self._cells[_REQUESTS] + 1

    def publish_buffers(self, replica: int, values: Tensor) -> None:
        """Replace a replica's row of buffers, which answers all requests so far."""
        request = self._cells[_REQUESTS]
        self.buffers[replica] = values
        self._cells[self._answers + replica] = request + 1

    def write(self, replica: int, row: Row) -> None:
        """Replace a replica's row."""
        start = self._rows + replica * _FIELDS
        for field, value in enumerate(row):
            self._cells[start + field] = value

    def steps(self, replica: int) -> int:
        """Batches that a replica has worked on."""
        return int(self._cells[self._rows + replica * _FIELDS])

    def read(self, replica: int) -> Row:
        """A replica's row."""
        start = self._rows + replica * _FIELDS
        return Row(*self._cells[start : start + _FIELDS].tolist())
