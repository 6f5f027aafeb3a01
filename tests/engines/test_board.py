"""The board that replicas write on."""

import torch

from distbelief.engines.board import Board, Row


def test_rows_and_buffers_are_each_replicas_own() -> None:
    memory = torch.zeros(Board.nbytes(3, 2), dtype=torch.uint8)
    board, other = Board(memory, 3, 2), Board(memory, 3, 2)
    board.write(1, Row(steps=3, examples=32, losses=1, loss=0.5, staleness=2, fetched_bytes=2.0**40))
    board.buffers[2] = torch.tensor([1.0, 2.0])
    assert other.read(1) == Row(3, 32, 1, 0.5, 0, 0, 2, 2.0**40, 0)
    assert [other.steps(replica) for replica in range(3)] == [0, 3, 0]
    assert other.read(0) == other.read(2) == Row()
    assert other.buffers.tolist() == [[0, 0], [0, 0], [1, 2]]
    assert not other.stopping
    board.stop()
    assert other.stopping
