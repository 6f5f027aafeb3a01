"""Transfers: vectors that leave and arrive as frames, out of and into memory that is kept.

1.  A frame is one ZeroMQ message: a header, and up to `FRAME` bytes in one part or several. The first frame of a
    transfer rides with the message that announces it, so a small vector is a single message.
2.  A sender has at most `WINDOW` frames under way. The receiver asks for `ASKED` more each time it has taken as many.
    So a large vector never holds up other calls on the connection by more than a few milliseconds.
3.  Frames leave without a copy, and arrive with one: out of ZeroMQ's memory into the target.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import final

import torch
import zmq
from torch import Tensor

FRAME = 1 << 20
"""Maximum number of bytes of a vector in one message."""
WINDOW = 8
"""Maximum number of frames of a transfer under way."""
ASKED = 4
"""Frames by which a receiver extends the sender's window at a time."""
_PARTS = 64
"""Maximum number of parts of one frame. Each is a call of its own, so small tensors are not sent by the thousand."""
_KEPT = 2
"""How many times larger than needed a kept buffer may be."""


def bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU, as bytes."""
    return tensor.detach().view(-1).view(torch.uint8).numpy().data


Part = memoryview | zmq.Frame


def frames(views: Sequence[memoryview]) -> Iterator[list[memoryview]]:
    """Cut memory into frames. Empty views are left out."""
    parts: list[memoryview] = []
    room = FRAME
    for view in views:
        start = 0
        while start < len(view):
            part = view[start : start + room]
            parts.append(part)
            start, room = start + len(part), room - len(part)
            if not room or len(parts) == _PARTS:
                yield parts
                parts, room = [], FRAME
    if parts:
        yield parts


def kept_frames(view: memoryview) -> list[list[zmq.Frame]]:
    """The frames of memory that is sent again and again: ZeroMQ need not tell Python when it is done with them."""
    return [[zmq.Frame(part, copy=False) for part in parts] for parts in frames([view])]


@final
class Outgoing:
    """What is left to send of a transfer: `nbytes` in frames, whose memory must not be reused before the end."""

    def __init__(self, nbytes: int, frames: Iterable[Sequence[Part]]) -> None:
        self.nbytes = self.left = nbytes
        self._frames = iter(frames)
        self._window = WINDOW

    def first(self) -> Sequence[Part]:
        """The frame that rides with the announcement; empty if there is nothing to send."""
        return next(self.ready(), [])

    def ready(self) -> Iterator[Sequence[Part]]:
        """The frames that may be sent now."""
        while self.left and self._window > 0:
            frame = next(self._frames)
            self._window -= 1
            self.left -= sum(len(part) for part in frame)
            yield frame

    def extend(self, count: int) -> None:
        """Let `count` more frames leave. Whatever a receiver asks for, no more than `WINDOW` are under way."""
        self._window = min(WINDOW, self._window + count)


@final
class Incoming:
    """What is left to receive of a transfer. `views`: the memory to fill. A part of a frame lies within one of them."""

    def __init__(self, views: Sequence[memoryview]) -> None:
        self.nbytes = self.left = sum(len(view) for view in views)
        self._views = iter(views)
        self._view = memoryview(b"")
        self._taken = 0

    def take(self, socket: zmq.Socket[bytes]) -> bool:
        """Receive the parts of one frame; False if they are not of this transfer, which then is void."""
        while socket.getsockopt(zmq.RCVMORE):
            while not len(self._view):
                if (view := next(self._views, None)) is None:
                    return False
                self._view = view
            # With an empty buffer, and with one that is too small, the size is told all the same.
            size = socket.recv_into(self._view)
            if size > len(self._view):
                return False
            self._view = self._view[size:]
            self.left -= size
        self._taken += 1
        return True

    def asks(self) -> int:
        """How many more frames to ask the sender for now."""
        if self.left and self._taken >= ASKED:
            self._taken -= ASKED
            return ASKED
        return 0


@final
class Buffers:
    """Host memory that is kept between transfers: fresh pages cost a large vector as much as its copy."""

    def __init__(self) -> None:
        self._free: list[Tensor] = []

    def take(self, nbytes: int) -> Tensor:
        """A buffer of exactly `nbytes`, uint8; its content is arbitrary. The caller owns it until `give`."""
        fitting = [free for free in self._free if nbytes <= free.numel() <= _KEPT * nbytes]
        if not fitting:
            return torch.empty(nbytes, dtype=torch.uint8)
        found = min(fitting, key=Tensor.numel)
        self._free = [free for free in self._free if free is not found]
        return found[:nbytes]

    def give(self, buffer: Tensor) -> None:
        """Take a buffer back. The largest number of simultaneous transfers bounds how many are kept."""
        whole = torch.empty(0, dtype=torch.uint8).set_(buffer.untyped_storage())
        self._free.append(whole)
