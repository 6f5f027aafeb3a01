"""The actor of one replica: it starts the process that is the replica, and passes messages on.

The user's code runs in a process of its own, as it does on one machine: however that ends, the actor lives to tell.
"""

import asyncio
import json
import os
import signal
import socket
import sys
from typing import Any, NamedTuple, final

import ray

from distbelief.engines.ray.cluster import settle_process
from distbelief.engines.worker.worker_process import WorkerProcess

_BEAT_S = 1.0
"""After this time a report is made that has nothing to say."""
_FDS = 8
_NAME_LINE = ":actor_name:"


class Place(NamedTuple):
    """Where a replica is."""

    node: str
    machine: str
    pid: int


class Report(NamedTuple):
    """What a replica has said since the last one."""

    messages: list[dict[str, Any]]
    closing: bool
    """Whether it will say nothing more."""
    status: int | None
    """The exit status of its process, once that has ended."""


@final
class ReplicaActor:
    """An actor: one a replica and incarnation. Its process imports torch at once, before it is told what for."""

    def __init__(self, run: str) -> None:
        settle_process()
        self._worker = WorkerProcess()
        self._told_closing = False
        self._run = run
        self._name = "replica"

    def __repr__(self) -> str:
        """What Ray shows before each line that the process prints."""
        return f"{self._name} of {self._run} on {socket.gethostname()}"

    async def place(self) -> Place:
        """Where it is."""
        node = ray.get_runtime_context().get_node_id()
        return Place(node, socket.gethostname(), self._worker.pid)

    async def attempt(self, machine_socket: str, path: list[str]) -> dict[str, Any] | None:
        """Have the process receive the task. What it says of that; None if it has died of it."""
        fds, _ = _descriptors(machine_socket)
        self._send("try", fds, path=path)
        while not self._worker.ended:
            for message in self._worker.channel.pending():
                return message
            await self._something()
        return None

    async def begin(self, machine_socket: str, assignment: dict[str, Any]) -> None:
        """Begin to work."""
        self._name = f"replica {assignment['replica']}"
        for stream in (sys.stdout, sys.stderr):
            # Ray asks for an actor's name once, when it is made; a line like this tells its log monitor a new one.
            print(f"{_NAME_LINE}{self!r}", file=stream, flush=True)
        fds, here = _descriptors(machine_socket)
        if here != assignment["here"]:
            raise RuntimeError(f"shards {assignment['here']} were promised, and {here} are there")
        self._send("job", fds, **assignment)

    async def send(self, kind: str, content: dict[str, Any]) -> None:
        """Pass a message on to the replica."""
        self._worker.channel.send(kind, **content)

    async def report(self) -> Report:
        """What the replica has said, as soon as there is something, or after a while in any case."""
        await self._something()
        ended = self._worker.ended
        messages = list(self._worker.channel.pending())
        for message in messages:
            del message["fds"]
        closing, self._told_closing = self._worker.channel.over and not self._told_closing, self._worker.channel.over
        return Report(messages, closing, await asyncio.to_thread(self._worker.reap) if ended else None)

    async def leave(self) -> None:
        """Tell the process to leave, as a machine does that is about to be taken away."""
        os.kill(self._worker.pid, signal.SIGTERM)

    async def end_if_stopped(self) -> None:
        """Kill the process if it is stopped."""
        if self._worker.stopped:
            self._worker.kill()

    def _send(self, kind: str, fds: list[int], **content: Any) -> None:
        self._worker.channel.send(kind, fds=tuple(fds), **content)
        for fd in fds:
            os.close(fd)

    async def _something(self) -> None:
        """Wait until the process says something or ends, for a while at most."""
        loop, happened = asyncio.get_running_loop(), asyncio.Event()
        watched = [self._worker.pidfd, *([] if self._worker.channel.over else [self._worker.channel.fileno()])]
        for fd in watched:
            loop.add_reader(fd, happened.set)
        try:
            async with asyncio.timeout(_BEAT_S):
                await happened.wait()
        except TimeoutError:
            pass
        finally:
            for fd in watched:
                loop.remove_reader(fd)


def _descriptors(name: str) -> tuple[list[int], list[int]]:
    """The descriptors of what a run has on this machine, and the shards among it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(f"\0{name}")
        told, fds, _, _ = socket.recv_fds(connection, 1 << 16, _FDS)
    return fds, json.loads(told or b"[]")
