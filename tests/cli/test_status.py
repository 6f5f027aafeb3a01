"""What `distbelief status` says; tests/engines/ray/test_board.py asks a cluster."""

import io
import socket

import pytest
from click.testing import CliRunner
from rich.console import Console

from distbelief.cli.commands import main
from distbelief.cli.status import lines, table
from distbelief.engines.ray.board import MachineStatus, RunStatus
from distbelief.observe.events import ReplicaStatus, Status

RUN = RunStatus(
    directory="/runs/mine",
    controller="one",
    status=Status(
        seconds=20.0,
        examples=6_400,
        updates=200,
        epoch=0.5,
        replicas=(
            ReplicaStatus(0, "working", 300.0, 2, 1),
            ReplicaStatus(1, "working", 250.0, 4),
            ReplicaStatus(2, "awaited"),
        ),
    ),
    machines=(MachineStatus("one", (0, 1), ()), MachineStatus("two", (), (0, 1))),
    deaths=1,
    evaluated_after=6_000,
    metrics={"loss": 0.5},
)


def test_what_is_said_of_a_run() -> None:
    first, second, third, fourth = lines(RUN, 1.0)
    assert first == "/runs/mine, begun on one"
    assert second.startswith("20 s  epoch 0.50  6,400 examples")
    assert third == "2 machines, 3 replicas, 200 updates, 1 death"
    assert fourth == "evaluated after 6,000 examples: loss 0.5000"
    assert lines(RUN, 12.0)[0] == "/runs/mine, begun on one, as of 12 s ago"


def test_what_is_where() -> None:
    drawn = io.StringIO()
    Console(file=drawn, width=100).print(table(RUN))
    _, *rows = drawn.getvalue().splitlines()
    assert [row.split() for row in rows] == [
        ["one", "0,", "1"],
        ["two", "#0", "working", "300", "2", "1"],
        ["#1", "working", "250", "4"],
        ["#2", "awaited", "0", "0"],
    ]


@pytest.mark.parametrize(
    ("address", "sentence"),
    [("nowhere", "such as \"10.0.0.1:6379\", not 'nowhere'"), (None, "nothing answers at 127.0.0.1:")],
)
def test_no_cluster_is_one_sentence_and_2(address: str | None, sentence: str) -> None:
    with socket.socket() as bound:
        # Bound, and not listening: nothing answers there, and nobody else can.
        bound.bind(("127.0.0.1", 0))
        where = address or f"127.0.0.1:{bound.getsockname()[1]}"
        result = CliRunner().invoke(main, ["status", "--address", where])
    assert result.exit_code == 2, result.output
    assert sentence in result.output
    assert "Traceback" not in result.output
