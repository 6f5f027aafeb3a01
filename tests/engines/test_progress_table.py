"""The progress table."""

import torch

from distbelief.allocation import Progress
from distbelief.engines.progress_table import ProgressTable


def test_rows_and_buffers_are_each_replicas_own() -> None:
    memory = torch.zeros(ProgressTable.nbytes(3, 2), dtype=torch.uint8)
    table, other = ProgressTable(memory, 3, 2), ProgressTable(memory, 3, 2)
    written = Progress(steps=7, examples=32, losses=1, loss=0.5, staleness=2, fetched_bytes=2.0**40)
    table.write(1, written)
    table.buffers[2] = torch.tensor([1.0, 2.0])
    assert other.read(1) == written
    assert other.steps(1) == 7
    assert other.read(0) == other.read(2) == Progress()
    assert other.buffers.tolist() == [[0, 0], [0, 0], [1, 2]]
    assert not other.stopping
    table.stop()
    assert other.stopping


def test_a_replica_publishes_its_buffers_once_at_first_and_once_a_request() -> None:
    memory = torch.zeros(ProgressTable.nbytes(2, 2), dtype=torch.uint8)
    controller, replica = ProgressTable(memory, 2, 2), ProgressTable(memory, 2, 2)
    published = []
    for step in range(6):
        if step in (2, 3):
            controller.request_buffers()
        if replica.awaits_buffers(1):
            replica.publish_buffers(1, torch.full((2,), float(step)))
            published.append(step)
        assert not controller.awaits_buffers(1)
    assert published == [0, 2, 3]
    assert controller.buffers.tolist() == [[0, 0], [3, 3]]
    assert controller.awaits_buffers(0)


def test_one_row_of_buffers_answers_all_requests_before_it() -> None:
    table = ProgressTable(torch.zeros(ProgressTable.nbytes(1, 1), dtype=torch.uint8), 1, 1)
    for _ in range(3):
        table.request_buffers()
    table.publish_buffers(0, torch.ones(1))
    assert not table.awaits_buffers(0)
    assert table.read(0) == Progress()
