"""What the replicas did, be they two or a thousand."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import LineCollection, QuadMesh

import distbelief as db
from distbelief.observe.report.log import Event
from distbelief.observe.report.picture import Picture
from distbelief.observe.report.record import read_records
from distbelief.observe.report.replicas import speeds_of, timeline_of
from tests.observe.report.logs import backward, begun, died, progress, record, resumed, simulate, started, texts, xs, ys


def bars(picture: Picture) -> list[tuple[float, float, float]]:
    """The bars of a time line: row, beginning, end."""
    found = [c for c in picture.figure.axes[0].collections if isinstance(c, LineCollection)]
    return sorted((float(s[0][1]), float(s[0][0]), float(s[1][0])) for lines in found for s in lines.get_segments())


def rows(picture: Picture) -> list[str]:
    return [label.get_text() for label in picture.figure.axes[0].get_yticklabels()]


def timeline(folder: Path, *events: Event) -> Picture:
    picture = timeline_of(record(folder, [started(), *events]))
    assert picture is not None
    return picture


def thousand() -> list[Event]:
    """A thousand replicas of which seven die, one of them for good."""
    events = [begun(replica, 1, 0.0) for replica in range(1000)]
    for replica in range(100, 800, 100):
        events.append(died(replica, 1, replica / 100))
        events += [begun(replica, 2, replica / 100 + 1)] if replica != 700 else []
    rng = np.random.default_rng(0)
    for second in range(1, 21):
        speeds = rng.normal(50, 5, 1000)
        events.append(progress(second, 1000 * second, *((r, float(speeds[r]), r % 7) for r in range(1000))))
    return events


def test_a_death_and_who_took_its_place_are_on_the_time_line(tmp_path: Path) -> None:
    run = simulate(tmp_path / "run", db.Death("replica 1", at=0.55, back=1.0))
    (found,) = read_records([run.directory])
    picture = timeline_of(found)
    assert picture is not None
    assert "simulated time" in texts(picture)
    (life,) = found.log.lives
    (dead,) = (process for process in life.processes if process.died_of is not None)
    heir = life.heir(dead)
    assert heir is not None and dead.ended is not None
    assert [row for row, *_ in bars(picture)] == [0, 1, 1, 2]
    assert bars(picture)[1:3] == [(1, 0.0, dead.ended), (1, heir.began, life.ended)]
    (cross,) = (line for line in picture.figure.axes[0].get_lines() if line.get_marker() == "x")
    assert (xs(cross), ys(cross)) == ([dead.ended], [1.0])
    assert "1 death" in picture.alt


def test_a_few_replicas_are_all_on_the_time_line(tmp_path: Path) -> None:
    assert rows(timeline(tmp_path, *(begun(replica, 1, 0.0) for replica in range(12)))) == [f"#{r}" for r in range(12)]


def test_of_a_thousand_replicas_those_are_drawn_to_which_something_happened(tmp_path: Path) -> None:
    picture = timeline(tmp_path, *thousand())
    assert rows(picture) == [f"#{replica}" for replica in range(100, 800, 100)]
    assert len(bars(picture)) == 7 + 6
    assert "Not drawn: 993 replicas" in picture.caption
    assert picture.png


def test_one_that_came_late_is_drawn(tmp_path: Path) -> None:
    events = [*(begun(replica, 1, 0.0) for replica in range(20)), begun(20, 1, 5.0), progress(10, 100)]
    assert rows(timeline(tmp_path, *events)) == ["#20"]


def test_a_thousand_deaths_are_drawn_without_a_number_each(tmp_path: Path) -> None:
    events = [event for r in range(1000) for event in (begun(r, 1, 0.0), died(r, 1, 1.0 + r))]
    picture = timeline(tmp_path, *events)
    assert len(bars(picture)) == 1000
    assert len(rows(picture)) <= 40
    assert picture.figure.get_size_inches()[1] <= 7
    assert picture.png


def test_lives_lie_one_after_the_other(tmp_path: Path) -> None:
    first = [begun(0, 1, 0.0), progress(10, 100)]
    second = [resumed(60, 6.0), started(6.0), begun(0, 1, 6.0), progress(8, 80)]
    picture = timeline(tmp_path, *first, *second)
    assert bars(picture) == [(0, 0.0, 10.0), (0, 10.0, 12.0)]
    assert [xs(line) for line in picture.figure.axes[0].get_lines() if line.get_linestyle() == "--"] == [[10.0, 10.0]]
    assert "what was lost is counted" in picture.caption


def test_where_nothing_happened_there_is_no_time_line(tmp_path: Path) -> None:
    assert timeline_of(record(tmp_path / "none")) is None
    many = record(tmp_path / "many", [started(), *(begun(replica, 1, 0.0) for replica in range(100)), progress(9, 90)])
    assert timeline_of(many) is None


def test_nobody_takes_the_place_of_one_that_is_gone_for_good(tmp_path: Path) -> None:
    log = record(tmp_path, [started(), begun(0, 1, 0.0), died(0, 1, 1.0), begun(1, 2, 2.0)]).log
    assert log.lives[0].heir(log.lives[0].processes[0]) is None


def test_up_to_eight_replicas_have_a_line_each(tmp_path: Path) -> None:
    run = simulate(tmp_path / "run")
    speed, staleness = speeds_of(*read_records([run.directory]))
    for picture in (speed, staleness):
        assert [line.get_label() for line in picture.figure.axes[0].get_lines()] == ["#0", "#1", "#2"]
        assert "simulated time" in texts(picture)


def test_a_thousand_replicas_have_bands_and_a_map(tmp_path: Path) -> None:
    speed, _ = speeds_of(record(tmp_path, [started(), *thousand()]))
    bands, heat, _ = speed.figure.axes
    (median,) = bands.get_lines()
    assert all(45 < value < 55 for value in ys(median))
    (mesh,) = (c for c in heat.collections if isinstance(c, QuadMesh))
    assert np.asarray(mesh.get_array()).shape == (1000, 20)
    assert speed.png


def test_speeds_of_a_long_run_are_means_and_gaps_stay_gaps(tmp_path: Path) -> None:
    events = [progress(t, 10 * t, (0, 40.0, 1), *([(1, float(t), 2)] if t < 300 else [])) for t in range(600)]
    speed, _ = speeds_of(record(tmp_path, [started(), *events]))
    first, second = (ys(line) for line in speed.figure.axes[0].get_lines())
    assert first == [40.0] * 60
    assert np.isfinite(second).tolist() == [True] * 30 + [False] * 30
    assert second[:3] == [4.5, 14.5, 24.5]


@pytest.mark.parametrize(
    "events",
    [[], [progress(1, 10, (0, 1.0, 0))], [progress(1, 10), progress(2, 20)]],
    ids=["nothing", "once", "of nobody"],
)
def test_without_two_times_there_is_no_picture_of_speeds(tmp_path: Path, events: list[Event]) -> None:
    assert speeds_of(record(tmp_path, [started(), *events])) == []


def test_speeds_of_a_resumed_run_do_not_go_back(tmp_path: Path) -> None:
    lost = [progress(t, 10 * t, (0, 9.0, 0)) for t in range(10)]
    events = [*lost, resumed(52, 5.2), started(5.2), *(progress(t + 0.3, 10 * t + 1, (0, 9.0, 0)) for t in (5, 6, 7))]
    speed, _ = speeds_of(record(tmp_path, [started(), *events]))
    assert backward(speed) == []
    assert len(xs(speed.figure.axes[0].get_lines()[0])) == 6 + 3


def test_where_a_machine_of_the_server_was_dead_the_ground_is_coloured(tmp_path: Path) -> None:
    away = [{"event": "machine", "seconds": at, "machine": "shard 1", "there": there} for at, there in ((4, 0), (7, 1))]
    away = [event | {"there": bool(event["there"])} for event in away]
    picture = timeline(tmp_path, started(), begun(0, 1, 0.0), *away, progress(10.0, 100, (0, 10.0, 0)))
    (panel,) = picture.figure.axes
    (span,) = panel.patches
    corners = span.get_extents().transformed(panel.transData.inverted())
    assert (corners.x0, corners.x1) == pytest.approx((4.0, 7.0))
    assert "server dead" in texts(picture)
    assert "a machine of the server was dead: shard 1." in picture.caption
