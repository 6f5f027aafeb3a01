"""A worker: the process of one replica. Started as `python -m distbelief.engines.local.worker`.

It imports torch while the controller prepares the run, then waits for its job on the socket it was started with.
"""

import asyncio
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, final

import torch

from distbelief.downpour.replica import DownpourReplica, Progress
from distbelief.engines.board import Board, Row
from distbelief.engines.local.channel import Channel
from distbelief.engines.local.job import Job
from distbelief.engines.shipping import unpack
from distbelief.errors import Diverged
from distbelief.links.mapped import MappedLink, SharedMemory, map_locks, map_shards
from distbelief.links.staged import StagedLink
from distbelief.ports import Lease, Outcome, ShardLink
from distbelief.server.client import Client
from distbelief.task.data import Batches
from distbelief.task.gradients import FlatModule, ModuleGradients
from distbelief.task.tracebacks import user_frames

_EXPENDABLE = "300"
"""Added to the thousandths of the machine's memory that a process takes, by which the kernel chooses whom to end."""


@final
class LeasedWork:
    """`WorkSource` over the channel. One lease is asked for ahead, so that a replica need not wait for the next.

    `publish` is called before the controller is told that a lease is done.
    """

    def __init__(self, channel: Channel, batches: Batches, publish: Callable[[], None]) -> None:
        self._channel = channel
        self._batches = batches
        self._publish = publish
        self._asked = False
        self._over = False

    async def lease(self) -> Lease | None:
        """The next portion; it was usually sent while the last was worked on."""
        if self._over:
            return None
        if not self._asked:
            self._ask()
        message = self._channel.receive()
        if message is None or message["lease"] is None:
            self._over = True
            return None
        self._ask()
        lease = Lease(*message["lease"])
        self._batches.expect(lease.epoch, lease.start, lease.stop)
        return lease

    async def done(self, lease: Lease, outcomes: Sequence[Outcome]) -> None:
        """Account for a lease."""
        self._publish()
        self._channel.send("done", lease=lease.number, outcomes=outcomes)

    def _ask(self) -> None:
        self._asked = self._channel.send("lease")


def main() -> None:
    """Run one replica to its end. Exit code 0 when there is no more work, 1 after an error that was reported."""
    # Ctrl-C is the controller's affair; the replicas are told by it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(OSError):
        # Where memory runs out, the kernel is to end a replica, which is replaced, and not the controller.
        Path("/proc/self/oom_score_adj").write_text(_EXPENDABLE)
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    threading.Thread(target=_die_with, args=(int(sys.argv[2]),), daemon=True).start()
    message = channel.receive()
    if message is None:
        return
    try:
        _work(channel, message)
    # Whatever the user's code raises is the controller's to judge.
    except Exception as error:  # noqa: BLE001
        channel.send("failed", **_describe(error))
        sys.exit(1)


def _die_with(fd: int) -> None:
    """End this process when the controller's end of a pipe is closed, which happens however it dies."""
    os.read(fd, 1)
    os._exit(2)


def _work(channel: Channel, message: dict[str, Any]) -> None:
    replica, incarnation = message["replica"], message["incarnation"]
    job_fd, shards_fd, board_fd = message["fds"]
    sys.path[:] = [*message["path"], *(p for p in sys.path if p not in message["path"])]
    job: Job = unpack(job_fd)
    torch.set_num_threads(job.threads)
    device = torch.device(job.devices[replica % len(job.devices)])
    if device.type == "cuda":
        torch.cuda.set_device(device)
    board = Board(SharedMemory(board_fd).bytes, job.replicas, job.buffers)
    flat = FlatModule(job.task.build(job.seed).train(), job.layout, job.moving, device)
    flat.load_buffers_(board.buffers[replica])
    memory = SharedMemory(shards_fd)
    links: list[ShardLink] = [MappedLink(s) for s in map_shards(memory, job.specs, map_locks(memory, len(job.specs)))]
    if device.type != "cpu":
        parts = [job.layout.part(flat.vector, shard) for shard in range(len(links))]
        links = [StagedLink(link, part) for link, part in zip(links, parts, strict=True)]
    client = Client(job.layout, links, replica=replica, incarnation=incarnation)
    batches = Batches(job.rows, job.batch_size, job.seed, job.workers)

    def publish() -> None:
        board.publish_buffers(replica, flat.buffers())

    def watch(p: Progress) -> None:
        board.write(replica, Row.of(p, client))
        if board.awaits_buffers(replica):
            publish()

    downpour = DownpourReplica(
        job.method,
        client=client,
        source=ModuleGradients(
            job.task.placed(device),
            flat,
            batches,
            seed=job.seed,
            precision=job.precision,
            # A GPU computes by itself: meanwhile this process can move bytes.
            beside=job.overlap > 0 and device.type != "cpu",
        ),
        work=LeasedWork(channel, batches, publish),
        parameters=flat.vector,
        overlap=job.overlap,
        stopping=lambda: board.stopping,
        watch=watch,
    )
    asyncio.run(downpour.run())


def _describe(error: Exception) -> dict[str, Any]:
    """An error for the controller: its kind, its sentence, and the frames of the user's own code."""
    diverged = isinstance(error, Diverged)
    return {
        "kind_of": "diverged" if diverged else "user",
        "error": str(error) if diverged else "".join(traceback.format_exception_only(error)).strip()[:2000],
        "frames": user_frames(error)[-8000:],
    }


if __name__ == "__main__":
    main()
