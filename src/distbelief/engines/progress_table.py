"""The progress table: shared memory in which replicas write their progress and the controller the request to stop."""

from array import array
from collections.abc import Iterable
from dataclasses import fields
from operator import attrgetter
from typing import cast, final

import torch
from torch import Tensor

from distbelief.allocation import Progress

_NAMES = [field.name for field in fields(Progress)]
_FIELDS = len(_NAMES)
_values = attrgetter(*_NAMES)
_STOP = 0
_REQUESTS = 1
_HEAD = 8
_PLACE = 2
"""Numbers that say which batch a replica is at: its epoch, from 1, and the batch in it."""


@final
class ProgressTable:
    """Rows of float64: one a replica for progress, one a replica for the buffers of its module.

    Buffers are large, and wanted a few times a minute only. So a replica publishes them after its first step, after the
    first step that follows a request, and at the end of each lease; in between its row is older than its module.

    A row is written by its replica alone and read at any time; a reader may see a step's row half written, which is a
    fault of one step in a figure for the eye. `memory` is uint8, `nbytes` of zeros, the caller's; all who look into it
    see the same table.
    """

    def __init__(self, memory: Tensor, replicas: int, buffers: int) -> None:
        numbers = memory[: self.nbytes(replicas, buffers)].view(torch.float64)
        self._cells = cast("memoryview[float]", numbers.numpy().data)
        self._answers = _HEAD
        self._places = self._answers + replicas
        self._rows = self._places + replicas * _PLACE
        start = self._rows + replicas * _FIELDS
        self.buffers = numbers[start : start + replicas * buffers].view(replicas, buffers)

    @staticmethod
    def nbytes(replicas: int, buffers: int) -> int:
        """Bytes of memory that a table takes."""
        return 8 * (_HEAD + replicas * (1 + _PLACE + _FIELDS + buffers))

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

    @property
    def requests(self) -> float:
        """How often buffers have been requested."""
        return self._cells[_REQUESTS]

    @requests.setter
    def requests(self, count: float) -> None:
        self._cells[_REQUESTS] = count

    def answered(self, replica: int) -> float:
        """The requests for its buffers that a replica has answered, and one more; 0 before it first published any."""
        return self._cells[self._answers + replica]

    def copy_buffers(self, replica: int, values: Tensor, answered: float) -> None:
        """Replace a replica's row of buffers by one of another table."""
        self.buffers[replica] = values
        self._cells[self._answers + replica] = answered

    def publish_buffers(self, replica: int, values: Tensor) -> None:
        """Replace a replica's row of buffers, which answers all requests so far."""
        request = self._cells[_REQUESTS]
        self.buffers[replica] = values
        self._cells[self._answers + replica] = request + 1

    def begin(self, replica: int, epoch: int, batch: int) -> None:
        """A replica begins a batch."""
        place = self._places + replica * _PLACE
        self._cells[place], self._cells[place + 1] = epoch + 1, batch

    def batch(self, replica: int) -> tuple[int, int] | None:
        """The batch that a replica began last, as (epoch, batch); None before its first."""
        place = self._places + replica * _PLACE
        epoch = int(self._cells[place])
        return (epoch - 1, int(self._cells[place + 1])) if epoch else None

    def retire(self, replica: int) -> Progress:
        """Clear a replica's row for its next incarnation; what was in it."""
        row = self.read(replica)
        self.write(replica, Progress())
        self._cells[self._places + replica * _PLACE] = 0
        return row

    def write(self, replica: int, progress: Progress) -> None:
        """Replace a replica's row."""
        start = self._rows + replica * _FIELDS
        self._cells[start : start + _FIELDS] = array("d", _values(progress))

    def steps(self, replica: int) -> int:
        """Batches that a replica has worked on."""
        return int(self._cells[self._rows + replica * _FIELDS])

    def read(self, replica: int) -> Progress:
        """A replica's row."""
        start = self._rows + replica * _FIELDS
        return Progress(*self._cells[start : start + _FIELDS].tolist())


def total(parts: Iterable[Progress]) -> Progress:
    """What several replicas have done, field by field."""
    return Progress(*map(sum, zip(*map(_values, parts), strict=True)))
