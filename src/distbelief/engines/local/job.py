"""What a worker is told: everything that the replicas of a run have in common."""

from dataclasses import dataclass

from distbelief.downpour.method import Downpour
from distbelief.run.prepare import Prepared
from distbelief.server.block import ShardSpec
from distbelief.server.layout import Layout
from distbelief.task.data import Rows
from distbelief.task.gradients import Precision
from distbelief.task.task import Task


@dataclass(frozen=True)
class Job:
    """A run, as its replicas see it."""

    task: Task
    """Without its data: `rows` are what is trained on."""
    rows: Rows
    batch_size: int
    workers: int
    """Data-loader processes of each replica."""
    method: Downpour
    layout: Layout
    specs: list[ShardSpec]
    moving: tuple[str, ...]
    """The buffers that training changes."""
    seed: int
    devices: tuple[str, ...]
    """Where replicas compute, in turn."""
    precision: Precision | None
    threads: int
    overlap: int
    replicas: int
    buffers: int
    """Elements in the module's buffers."""


def job_of(prepared: Prepared, specs: list[ShardSpec], devices: tuple[str, ...], threads: int, buffers: int) -> Job:
    """What the workers of a run are told."""
    return Job(
        task=prepared.task.without_data(),
        rows=prepared.rows,
        batch_size=prepared.batch_size,
        workers=prepared.workers,
        method=prepared.method,
        layout=prepared.layout,
        specs=specs,
        moving=prepared.moving,
        seed=prepared.seed,
        devices=devices,
        precision=prepared.precision,
        threads=threads,
        overlap=prepared.method.overlap or 0,
        replicas=prepared.replicas,
        buffers=buffers,
    )
