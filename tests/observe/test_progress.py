"""What a person sees of a run."""

import dataclasses
import io
from typing import Any

import pytest
from rich.console import Console

from distbelief.observe import progress
from distbelief.observe.events import ReplicaStatus, Status

STATUS = Status(
    seconds=75.0,
    examples=120_000,
    updates=900,
    epoch=1.5,
    loss=0.25,
    examples_per_second=1600.0,
    fraction=0.25,
    learning_rate=0.00031,
    gradient_norm=12.345,
    replicas=(ReplicaStatus(0, "working", 1000.0, 1), ReplicaStatus(1, "starting", 600.0, 4, 2)),
)


def lines() -> tuple[progress.Lines, io.StringIO]:
    out = io.StringIO()
    return progress.Lines(Console(file=out, width=200, highlight=False)), out


def test_a_line_holds_speed_loss_staleness_and_the_time_left() -> None:
    shown, out = lines()
    shown.status(STATUS)
    shown.status(STATUS)
    assert out.getvalue().splitlines() == [
        "01:15  epoch 1.50  120,000 examples  1,600/s  loss 0.2500  03:45 left  lr 0.00031  gradient 12.3  "
        "#0 1,000/s, staleness 1  #1 600/s, staleness 4"
    ]


MANY = dataclasses.replace(
    STATUS, replicas=tuple(ReplicaStatus(r, "done" if r == 999 else "working", 10.0 * r, r) for r in range(1000))
)


def test_of_many_replicas_it_is_told_how_they_are_together() -> None:
    shown, out = lines()
    shown.status(MANY)
    assert out.getvalue().endswith("03:45 left  lr 0.00031  gradient 12.3  each 0 to 9,990/s, staleness 0 to 999\n")


def test_many_replicas_fit_a_screen() -> None:
    out = io.StringIO()
    Console(file=out, width=100).print(progress._drawn(MANY))
    table = [line.split() for line in out.getvalue().splitlines()[1:3]]
    assert table == [
        "999 replicas working 0 to 9,980 0 to 998".split(),
        "1 replica done 9,990 999".split(),
    ]


SAME = {"newly_frozen": [], "newly_trained": [], "other_data": False, "earlier": None}


@pytest.mark.parametrize(
    ("event", "content", "expected"),
    [
        (
            "resumed",
            {"examples": 1000, "damaged": [], "fresh_state": ["mean"], **SAME},
            "goes on after 1,000 examples; the checkpoint holds no mean for this optimizer",
        ),
        (
            "resumed",
            {"examples": 1000, "damaged": [], "fresh_state": [], **(SAME | {"other_data": True})},
            "goes on after 1,000 examples\nthe training data are not those that the run began with",
        ),
        (
            "resumed",
            {"examples": 1000, "damaged": [], "fresh_state": []}
            | SAME
            | {"newly_frozen": ["0.weight"], "newly_trained": [f"{i}.bias" for i in range(6)]},
            "goes on after 1,000 examples\n0.weight: not trained any more, and kept as it was\n"
            "0.bias, 1.bias, 2.bias, 3.bias and 2 others: trained from here on, with optimizer state that begins anew",
        ),
        (
            "resumed",
            {"examples": None, "damaged": ["1 is damaged"], "fresh_state": [], "earlier": "run/earlier-1"},
            "1 is damaged\nno checkpoint to resume from: begins; what the earlier run wrote is in run/earlier-1",
        ),
        (
            "evaluation",
            {"examples": 1000, "epoch": 0.5, "seconds": 1.0, "loss": 0.5},
            "evaluated after 1,000 examples: loss 0.5000",
        ),
        (
            "died",
            {"replica": 1, "status": -9, "error": None},
            "replica #1 died (SIGKILL: the machine may be out of memory); what it held is leased again",
        ),
        ("died", {"replica": 1, "status": 1, "error": "KeyError: 'a'\nmore"}, "replica #1 died (KeyError: 'a')"),
        (
            "stopped",
            {"stopped_by": "seconds", "examples": 5000, "updates": 10, "refused": 0, "train_loss": 0.5}
            | {"evaluations_left_out": 3},
            "10 updates; evaluations left out since others were under way: 3; evaluate less often, or each epoch",
        ),
        (
            "stopped",
            {"stopped_by": "epochs", "examples": 5000, "updates": 10, "refused": 1320, "train_loss": 0.5}
            | {"evaluations_left_out": 0},
            "10 updates; 1,320 examples refused since their gradients were not finite, training loss 0.5",
        ),
    ],
)
def test_events_are_told_in_sentences(event: str, content: dict[str, Any], expected: str) -> None:
    shown, out = lines()
    shown.event(event, **({"seconds": 3700.0} | content))
    assert expected in out.getvalue()


def test_what_has_no_effect_is_told_at_the_start() -> None:
    shown, out = lines()
    started: dict[str, Any] = {
        "engine": "local",
        "devices": ["cpu"],
        "chosen_by": None,
        "precision": None,
        "emulated": False,
    }
    started |= {"replicas": 1, "shards": 1, "parameters": 3, "batch_size": 2, "remarks": ["a is never used", "nor b"]}
    shown.event("started", 0.0, **started)
    assert out.getvalue().endswith("3 parameters, batches of 2\na is never used\nnor b\n")


def test_a_flood_of_evaluations_is_told_of_once_and_the_last_one_always() -> None:
    shown, out = lines()
    for examples in range(100):
        shown.event("evaluation", seconds=1.0, examples=examples, loss=0.5)
    shown.event("evaluating", seconds=1.0)
    shown.event("evaluation", seconds=1.0, examples=100, loss=0.5, test_loss=0.5, accuracy=0.25)
    first, _, last = out.getvalue().splitlines()
    assert first.endswith("evaluated after 0 examples: loss 0.5000")
    assert last.endswith("evaluated after 100 examples: loss 0.5000  accuracy 0.2500")


def test_events_that_the_status_shows_anyway_are_not_printed() -> None:
    shown, out = lines()
    shown.event("progress", 1.0, examples=3)
    shown.event("replica", 1.0, replica=0, incarnation=1, pid=3)
    assert out.getvalue() == ""


def test_on_a_terminal_a_table_shows_each_replica() -> None:
    out = io.StringIO()
    Console(file=out, width=100).print(progress._drawn(STATUS))
    table = out.getvalue()
    assert "#1" in table
    assert "starting" in table
    assert "03:45 left" in table
    assert "lr 0.00031  gradient 12.3\n" in table


def test_time_left_is_not_guessed_at_the_ends() -> None:
    assert Status(seconds=10, fraction=0.0).remaining_s is None
    assert Status(seconds=10, fraction=1.0).remaining_s is None
