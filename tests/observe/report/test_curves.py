"""Curves of one run and of several."""

import itertools
import shutil
from pathlib import Path

import pytest

import distbelief as db
from distbelief.observe.report.curves import MOST, curves_of, overlays
from distbelief.observe.report.picture import Picture
from distbelief.observe.report.record import Record, read_records
from tests.observe.report.logs import backward, evaluation, progress, record, resumed, simulate, started, texts, xs, ys


def labels(picture: Picture) -> list[str]:
    return [str(line.get_label()) for line in picture.figure.axes[0].get_lines()]


def test_every_metric_is_drawn_thrice_and_each_set_has_a_line(tmp_path: Path) -> None:
    run = simulate(tmp_path / "run")
    pictures, left_out = curves_of(*read_records([run.directory]))
    assert [picture.name for picture in pictures] == [
        *(f"{metric}-{axis}" for metric in ("loss", "accuracy") for axis in ("seconds", "examples", "updates")),
        "learning_rate-examples",
        "gradient_norm-examples",
    ]
    assert left_out == []
    assert [labels(picture) for picture in pictures[::3]] == [
        ["training batches", "validation", "test"],
        ["validation", "test"],
        ["training batches"],
    ]
    assert set(ys(pictures[6].figure.axes[0].get_lines()[0])) == {0.05}
    accuracy = pictures[4].figure.axes[0].get_lines()[0]
    assert list(zip(xs(accuracy), ys(accuracy), strict=True)) == [
        (row["examples"], row["accuracy"]) for row in run.history
    ]
    assert all("simulated time" in texts(picture) for picture in pictures)


def test_a_resumed_run_goes_on_where_its_checkpoint_was(tmp_path: Path) -> None:
    """The newest checkpoint is gone, so that a part of what was told was lost."""
    often = {"checkpoint_every": db.Every(examples=640), "evaluate_every": db.Every(examples=160)}
    simulate(tmp_path / "run", epochs=4, **often)
    for checkpoint in sorted((tmp_path / "run" / "checkpoints").iterdir())[1:]:
        if checkpoint.is_dir():
            shutil.rmtree(checkpoint)
    second = simulate(tmp_path / "run", epochs=6, resume=True, **often)
    assert second.summary["resumed_at"] < 3 * 640
    (found,) = read_records([second.directory])
    assert [point.at[1] for point in found.evaluations] == [row["examples"] for row in second.history]
    told = (second.directory / "events.jsonl").read_text().count('"event": "evaluation"')
    assert told > len(found.evaluations) + 3, "what was lost is in the log, and not drawn"
    assert [backward(picture) for picture in curves_of(found)[0]] == [[]] * 8


def test_a_run_whose_controller_died_before_any_checkpoint_begins_anew(tmp_path: Path) -> None:
    run = simulate(tmp_path / "run", db.Death("controller", at=1.0, back=1.0), checkpoint_every=db.Every(seconds=1e6))
    (found,) = read_records([run.directory])
    assert len(found.log.lives) == 2
    assert [backward(picture) for picture in curves_of(found)[0]] == [[]] * 8


def test_updates_that_a_shard_took_back_are_left_out_of_their_axis_only(tmp_path: Path) -> None:
    steps = [(1, 100, 10), (2, 200, 20), (3, 300, 15), (4, 400, 25)]
    rows = [{**evaluation(s, e, loss=1.0), "updates": u} for s, e, u in steps]
    seconds, _, updates = curves_of(record(tmp_path, [started(), *rows]))[0]
    assert [len(xs(p.figure.axes[0].get_lines()[0])) for p in (seconds, updates)] == [4, 3]


@pytest.mark.parametrize("events", [[], [started()], [started(), progress(1, 10, loss=None)]])
def test_without_anything_told_there_is_no_curve(tmp_path: Path, events: list[dict[str, object]]) -> None:
    assert curves_of(record(tmp_path, events)) == ([], [])


def test_a_loss_is_drawn_without_any_evaluation_and_a_metric_without_any_loss(tmp_path: Path) -> None:
    only_loss, _ = curves_of(record(tmp_path / "a", [started(), progress(1, 10)]))
    assert labels(only_loss[0]) == ["training batches"]
    only_metric, _ = curves_of(record(tmp_path / "b", [started(), evaluation(1, 10, loss=None, test_recall=0.5)]))
    assert [picture.title for picture in only_metric[:1]] == ["test_recall against seconds"]


def test_a_long_training_loss_is_thinned_and_a_steep_one_is_logarithmic(tmp_path: Path) -> None:
    events = [progress(t, 10 * t, loss=1000.0 / (t + 1)) for t in range(1000)]
    picture = curves_of(record(tmp_path, [started(), *events]))[0][0]
    (line,) = picture.figure.axes[0].get_lines()
    assert len(xs(line)) == 200
    assert picture.figure.axes[0].get_yscale() == "log"
    assert picture.figure.axes[0].get_xlabel() == "minutes"


def test_of_very_many_metrics_some_are_left_out_by_name(tmp_path: Path) -> None:
    pictures, left_out = curves_of(
        record(tmp_path, [started(), evaluation(1, 10, **{f"m{i}": 0.5 for i in range(20)})])
    )
    assert len(pictures) == 3 * MOST
    assert left_out == [f"m{i}" for i in range(MOST, 20)]


def compared(folder: Path, *engines: str) -> list[Record]:
    events = [progress(1, 10), evaluation(1, 10, loss=1.0, test_loss=1.1), evaluation(2, 20, loss=0.5)]
    return [
        record(folder / f"{place}-{engine}", [started(engine=engine), *events]) for place, engine in enumerate(engines)
    ]


def test_runs_are_overlaid_in_lines_that_differ_by_more_than_colour(tmp_path: Path) -> None:
    pictures, _ = overlays(compared(tmp_path, *["local"] * 9))
    assert [p.title for p in pictures[::3]] == ["training loss against seconds", "loss against seconds"]
    lines = pictures[3].figure.axes[0].get_lines()
    assert len({(line.get_color(), line.get_linestyle(), line.get_marker()) for line in lines}) == 9
    assert all(a.get_linestyle() != b.get_linestyle() for a, b in itertools.pairwise(lines))
    assert not any("simulated" in text for text in texts(pictures[0]))


def test_where_some_runs_are_simulated_the_picture_says_which(tmp_path: Path) -> None:
    pictures, _ = overlays(compared(tmp_path, "local", "simulated"))
    for picture in pictures:
        assert "partly simulated time" in texts(picture)
        assert labels(picture) == ["1. 0-local", "2. 1-simulated (simulated)"]
    for picture in overlays(compared(tmp_path, "simulated", "simulated"))[0]:
        assert "simulated time" in texts(picture)
        assert labels(picture) == ["1. 0-simulated", "2. 1-simulated"]


def test_runs_that_told_nothing_are_compared_without_a_picture(tmp_path: Path) -> None:
    assert overlays([record(tmp_path / "a"), record(tmp_path / "b", [resumed(None, 0.0), started()])]) == ([], [])
