"""What a worker is told: everything that the replicas of a run have in common."""

from dataclasses import dataclass

from distbelief.downpour.method import Downpour
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
