"""A ZeroMQ socket that an asyncio loop reads and that never blocks it.

`zmq.asyncio` makes a future for each part of each message. Here a callback takes whole messages as they come: at one
megabyte a message that is the difference between a loop that is busy and one that is not.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import final

import zmq

_BURST = 4
"""Messages that are taken before other callbacks of the loop get their turn."""
_LAST, _MORE = int(zmq.NOBLOCK), int(zmq.NOBLOCK | zmq.SNDMORE)
"""Flags of a message's last part and of the others. Plain integers: `zmq.Flag` takes microseconds to combine."""


@final
class LoopSocket:
    """Calls `receive` for each message that arrives, in the running loop. `receive` reads as many parts as it likes.

    `receive` is called with the socket. The parts that it leaves are discarded. The socket is owned and closed here.
    """

    def __init__(self, socket: zmq.Socket[bytes], receive: Callable[[zmq.Socket[bytes]], object]) -> None:
        self.socket = socket
        self._receive = receive
        self._loop = asyncio.get_running_loop()
        self._scheduled = False
        self._fd = int(socket.getsockopt(zmq.FD))
        self._loop.add_reader(self._fd, self._read)
        self._schedule()

    def send(self, *parts: bytes | memoryview | zmq.Frame) -> bool:
        """Send a message of some parts; False if there is no connection to send it by. Large parts are not copied."""
        if self.socket.closed or not (self._write(parts) or self._write_again(parts)):
            return False
        # Sending may swallow the edge by which the descriptor tells that something has arrived.
        self._schedule()
        return True

    def _write(self, parts: Sequence[bytes | memoryview | zmq.Frame]) -> bool:
        last = len(parts) - 1
        try:
            for number, part in enumerate(parts):
                self.socket.send(part, _MORE if number < last else _LAST, copy=False)
        except zmq.ZMQError as error:
            # Only the first part can fail so.
            if error.errno not in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                raise
            return False
        return True

    def _write_again(self, parts: Sequence[bytes | memoryview | zmq.Frame]) -> bool:
        """A socket learns of a new connection from time to time, or when it is asked for its events."""
        return self._has(zmq.POLLOUT) and self._write(parts)

    def _has(self, event: int) -> bool:
        events = self.socket.getsockopt(zmq.EVENTS)
        return isinstance(events, int) and bool(events & event)

    def close(self) -> None:
        """Stop reading and close; what was not sent yet is dropped."""
        if not self.socket.closed:
            self._loop.remove_reader(self._fd)
            self.socket.close(linger=0)

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._read_on)

    def _read_on(self) -> None:
        self._scheduled = False
        self._read()

    def _read(self) -> None:
        for _ in range(_BURST):
            if self.socket.closed or not self._has(zmq.POLLIN):
                return
            # The descriptor tells of changes only, so what is left after these is looked for.
            self._schedule()
            try:
                self._receive(self.socket)
            finally:
                while not self.socket.closed and self.socket.getsockopt(zmq.RCVMORE):
                    self.socket.recv_into(bytearray())
