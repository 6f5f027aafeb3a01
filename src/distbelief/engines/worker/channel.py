"""The socket between the controller and a worker: one packet a message, JSON, with file descriptors beside it.

The worker says "lease" (it wants work), "done" (a lease has ended), "leaving" (it was told to leave) and "failed"; the
controller says "job", once, and answers each "lease" and "done" under its number. Packets keep their order and are
readable after the sender's death, so nothing that a replica has said is lost.
"""

import array
import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, final

_LARGEST = 1 << 17


@final
class Channel:
    """One end of a pair."""

    def __init__(self, end: socket.socket) -> None:
        self.socket = end
        self.over = False
        """Whether the other end is closed and all that it sent has been read."""

    @classmethod
    def pair(cls) -> tuple["Channel", "Channel"]:
        """Two ends."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(ours), cls(theirs)

    def fileno(self) -> int:
        """The descriptor, for selectors."""
        return self.socket.fileno()

    def send(self, kind: str, *, fds: tuple[int, ...] = (), **content: Any) -> bool:
        """Send a message; False if nobody is there to read it."""
        body = json.dumps({"kind": kind, **content}).encode()
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self.socket.sendmsg([body], rights, socket.MSG_NOSIGNAL)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def pending(self) -> Iterator[dict[str, Any]]:
        """The messages that are there, as they are read; never waits."""
        with suppress(BlockingIOError):
            while (message := self.receive(socket.MSG_DONTWAIT)) is not None:
                yield message

    def receive(self, flags: int = 0) -> dict[str, Any] | None:
        """The next message, its descriptors under "fds"; waits for one. None if the other end is closed."""
        try:
            body, rights, _, _ = self.socket.recvmsg(_LARGEST, socket.CMSG_SPACE(16 * array.array("i").itemsize), flags)
        except ConnectionResetError:
            # Said once, if the other end died with a message of ours unread; what it had sent before comes after it.
            return self.receive(flags)
        if not body:
            self.over = True
            return None
        message: dict[str, Any] = json.loads(body)
        fds = array.array("i")
        for level, kind, data in rights:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
        message["fds"] = list(fds)
        return message

    def close(self) -> None:
        """Close this end."""
        self.socket.close()
