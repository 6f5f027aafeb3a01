"""A worker: the process of one replica, once it has begun (`boot.py`).

It imports torch while the controller prepares the run, then waits for its job on the socket it was started with.
"""

import asyncio
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

from distbelief.allocation import Progress, Replica
from distbelief.downpour.lease_client import LeaseClient
from distbelief.engines.assembly import assemble, failure_of
from distbelief.engines.progress_table import ProgressTable
from distbelief.engines.shipping import unpack
from distbelief.engines.worker.channel import Channel
from distbelief.engines.worker.descendants import MARK
from distbelief.engines.worker.job import Job
from distbelief.engines.worker.notice import Notice
from distbelief.engines.worker.requests import ChannelRequests
from distbelief.engines.worker.worker_process import ENVIRONMENT
from distbelief.links.codec import codec_of
from distbelief.links.forks import children_end_too
from distbelief.links.mapped import MappedLink, SharedMemory, map_locks, map_shards
from distbelief.links.staged import StagedLink
from distbelief.links.wire import Keys, WireClient
from distbelief.ports import Lease, ShardLink
from distbelief.run.prepare import Prepared
from distbelief.server.patience import Patience
from distbelief.task.gradients import FlatModule, ModuleGradients
from distbelief.task.settings import Settings

PATIENCE = Patience(5.0, 60.0)
"""Of calls over a wire."""
_EXPENDABLE = "300"
"""Added to the thousandths of the machine's memory that a process takes, by which the kernel chooses whom to end."""


def serve(fd: int, notice: Notice) -> None:
    """Run one replica to its end, which `notice` brings forward.

    Exit code 0 when there is no more work, 1 after an error that was reported.
    """
    with suppress(OSError):
        # Where memory runs out, the kernel is to end a replica, which is replaced, and not the controller.
        Path("/proc/self/oom_score_adj").write_text(_EXPENDABLE)
    channel = Channel(socket.socket(fileno=fd))
    # What this process forks is not to outlive it, even if it is killed.
    with children_end_too():
        while (message := channel.receive()) is not None:
            if message["kind"] == "try":
                _try(channel, message)
            else:
                notice.pass_on(partial(channel.send, "leaving"))
                _work_or_tell(channel, message, notice)
                return


def _try(channel: Channel, message: dict[str, Any]) -> None:
    """Receive a job, to no other end than to see whether that can be done here."""
    try:
        _job(message)
    # Whatever the user's classes raise.
    except Exception as error:  # noqa: BLE001
        channel.send("tried", **failure_of(error)._asdict() | {"cause": None})
    else:
        channel.send("tried", error=None)


def _job(message: dict[str, Any]) -> Job:
    sys.path[:] = [*message["path"], *(p for p in sys.path if p not in message["path"])]
    settings: Settings = unpack(message["fds"][0])
    # This process may have been started before the task changed anything.
    settings.apply(own=(*ENVIRONMENT, "PYTHONPATH", MARK))
    job: Job = unpack(message["fds"][1])
    return job


def _work_or_tell(channel: Channel, message: dict[str, Any], notice: Notice) -> None:
    try:
        _work(channel, message, notice)
    # Whatever the user's code raises, `sys.exit` included, is the controller's to judge.
    except BaseException as error:  # noqa: BLE001
        failure = failure_of(error)
        channel.send("failed", error=failure.error, frames=failure.frames, kind_of=failure.kind_of)
        sys.exit(1)


def _work(channel: Channel, message: dict[str, Any], notice: Notice) -> None:
    replica = message["replica"]
    job = _job(message)
    run = job.run
    torch.set_num_threads(job.threads)
    device = torch.device(job.devices[replica % len(job.devices)])
    if device.type == "cuda":
        torch.cuda.set_device(device)
    table = ProgressTable(SharedMemory(message["fds"][2]).bytes, run.replicas, job.buffers)
    flat = FlatModule(run.task.build(run.seed).train(), run.layout, run.mutable_buffers, device)
    flat.load_buffers_(table.buffers[replica])
    asyncio.run(_run(channel, notice, job, message, table, flat))


@contextmanager
def _links(job: Job, message: dict[str, Any], flat: FlatModule) -> Iterator[list[ShardLink]]:
    """A link to each shard: those in this machine's memory are mapped, the others reached through their servers."""
    here, links = message["here"], dict[int, ShardLink]()
    if here:
        memory, specs = SharedMemory(message["fds"][3]), [job.specs[shard] for shard in here]
        mapped = map_shards(memory, specs, map_locks(memory, len(specs)))
        links.update(zip(here, map(MappedLink, mapped), strict=True))
    keys = None if message["keys"] is None else Keys(*map(str.encode, message["keys"]))
    clients = {address: WireClient(address, keys) for _, address in message["servers"]}
    for shard, address in message["servers"]:
        links[shard] = clients[address].link(shard, job.specs[shard], codec_of(message["codec"]))
    if flat.device.type != "cpu":
        links = {shard: StagedLink(link, flat.layout.part(flat.vector, shard)) for shard, link in links.items()}
    try:
        yield [links[shard] for shard in range(len(job.specs))]
    finally:
        for client in clients.values():
            client.close()


async def _run(
    channel: Channel, notice: Notice, job: Job, message: dict[str, Any], table: ProgressTable, flat: FlatModule
) -> None:
    who = message["replica"], message["incarnation"]
    with _links(job, message, flat) as links:
        await _replica(channel, notice, job.run, *who, table, flat, links).run()


def _replica(
    channel: Channel,
    notice: Notice,
    run: Prepared,
    replica: int,
    incarnation: int,
    table: ProgressTable,
    flat: FlatModule,
    links: list[ShardLink],
) -> Replica:
    batches = run.batches(workers=run.workers)
    at_once = all(link.answers_at_once for link in links)
    # A GPU computes by itself, and a wire carries: meanwhile this process can move bytes.
    beside = run.overlap > 0 and (flat.device.type != "cpu" or not at_once)

    def publish_buffers() -> None:
        table.publish_buffers(replica, flat.buffers())

    def publish(progress: Progress) -> None:
        table.write(replica, progress)
        if table.awaits_buffers(replica):
            publish_buffers()

    def expect(lease: Lease) -> None:
        batches.expect(lease.epoch, lease.start, lease.stop)

    requests = ChannelRequests(channel, publish_buffers)
    return assemble(
        run,
        links,
        replica,
        incarnation,
        source=ModuleGradients(
            run.task.placed(flat.device),
            flat,
            batches,
            seed=run.seed,
            precision=run.precision,
            begin=partial(table.begin, replica),
            beside=beside,
        ),
        work=LeaseClient(requests, expect, leaving=lambda: notice.given),
        parameters=flat.vector,
        stopping=lambda: notice.given or table.stopping,
        watch=publish,
        patience=None if at_once else PATIENCE,
    )
