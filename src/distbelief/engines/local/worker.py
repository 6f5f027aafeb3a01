"""A worker: the process of one replica. Started as `python -m distbelief.engines.local.worker`.

It imports torch while the controller prepares the run, then waits for its job on the socket it was started with.
"""

import asyncio
import os
import signal
import socket
import sys
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

from distbelief.allocation import Progress
from distbelief.downpour.lease_client import LeaseClient
from distbelief.engines.assembly import assemble, failure_of
from distbelief.engines.local.channel import Channel
from distbelief.engines.local.job import Job
from distbelief.engines.local.requests import ChannelRequests
from distbelief.engines.local.worker_process import ENVIRONMENT
from distbelief.engines.progress_table import ProgressTable
from distbelief.engines.shipping import unpack
from distbelief.links.mapped import MappedLink, SharedMemory, map_locks, map_shards
from distbelief.links.staged import StagedLink
from distbelief.ports import ShardLink
from distbelief.run.prepare import Prepared
from distbelief.task.data import Batches
from distbelief.task.gradients import FlatModule, ModuleGradients
from distbelief.task.settings import Settings

_EXPENDABLE = "300"
"""Added to the thousandths of the machine's memory that a process takes, by which the kernel chooses whom to end."""


def main() -> None:
    """Run one replica to its end. Exit code 0 when there is no more work, 1 after an error that was reported."""
    # Ctrl-C and the end of a terminal are the controller's affair, which ends the run or has been started to ignore
    # them; the replicas are told by it. What a worker starts, such as the processes of data loaders, inherits this.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
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
        failure = failure_of(error)
        channel.send("failed", error=failure.error, frames=failure.frames, kind_of=failure.kind_of)
        sys.exit(1)


def _die_with(fd: int) -> None:
    """End this process when the controller's end of a pipe is closed, which happens however it dies."""
    os.read(fd, 1)
    os._exit(2)


def _work(channel: Channel, message: dict[str, Any]) -> None:
    replica, incarnation = message["replica"], message["incarnation"]
    settings_fd, job_fd, shards_fd, table_fd = message["fds"]
    sys.path[:] = [*message["path"], *(p for p in sys.path if p not in message["path"])]
    settings: Settings = unpack(settings_fd)
    # This process may have been started before the task changed anything.
    settings.apply(own=(*ENVIRONMENT, "PYTHONPATH"))
    job: Job = unpack(job_fd)
    run = job.run
    torch.set_num_threads(job.threads)
    device = torch.device(job.devices[replica % len(job.devices)])
    if device.type == "cuda":
        torch.cuda.set_device(device)
    table = ProgressTable(SharedMemory(table_fd).bytes, run.replicas, job.buffers)
    flat = FlatModule(run.task.build(run.seed).train(), run.layout, run.mutable_buffers, device)
    flat.load_buffers_(table.buffers[replica])
    memory = SharedMemory(shards_fd)
    links: list[ShardLink] = [MappedLink(s) for s in map_shards(memory, job.specs, map_locks(memory, len(job.specs)))]
    if device.type != "cpu":
        parts = [run.layout.part(flat.vector, shard) for shard in range(len(links))]
        links = [StagedLink(link, part) for link, part in zip(links, parts, strict=True)]
    asyncio.run(_run(channel, run, table, flat, links, replica, incarnation))


async def _run(
    channel: Channel,
    run: Prepared,
    table: ProgressTable,
    flat: FlatModule,
    links: list[ShardLink],
    replica: int,
    life: int,
) -> None:
    batches = Batches(run.rows, run.batch_size, run.seed, run.workers)
    # A GPU computes by itself: meanwhile this process can move bytes.
    beside = run.overlap > 0 and flat.device.type != "cpu"

    def publish_buffers() -> None:
        table.publish_buffers(replica, flat.buffers())

    def publish(progress: Progress) -> None:
        table.write(replica, progress)
        if table.awaits_buffers(replica):
            publish_buffers()

    requests = ChannelRequests(channel, publish_buffers)
    await assemble(
        run,
        links,
        replica,
        life,
        source=ModuleGradients(
            run.task.placed(flat.device),
            flat,
            batches,
            seed=run.seed,
            precision=run.precision,
            begin=partial(table.begin, replica),
            beside=beside,
        ),
        work=LeaseClient(requests, lambda lease: batches.expect(lease.epoch, lease.start, lease.stop)),
        parameters=flat.vector,
        stopping=lambda: table.stopping,
        watch=publish,
    ).run()


if __name__ == "__main__":
    main()
