"""What a worker is told: everything that the replicas of a run have in common."""

from dataclasses import dataclass, field

from distbelief.data import Rows
from distbelief.downpour.method import Downpour
from distbelief.server.layout import Layout
from distbelief.server.shard import ShardSpec
from distbelief.task import Task


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
    seed: int
    threads: int
    overlap: int
    replicas: int
    buffers: int
    """Elements in the module's buffers."""
    path: list[str] = field(default_factory=list)
    """The controller's module search path, so that the task's own imports are found."""
