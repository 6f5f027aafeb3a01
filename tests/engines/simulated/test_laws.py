import itertools
import json
import math
import random
import statistics
from pathlib import Path
from typing import Any

import pytest

from distbelief.engines.simulated.laws import (
    Constant,
    Exponential,
    Law,
    Lognormal,
    Measured,
    PerReplica,
    Spread,
    law_of,
)
from distbelief.errors import DirectoryError, UsageError


def drawn(law: Law, times: int = 4000, *, seed: int = 0, replica: int = 0) -> list[float]:
    draw = law.draw(random.Random(seed), replica)
    return [draw() for _ in range(times)]


def test_a_constant_never_changes() -> None:
    assert set(drawn(Constant(0.25), 10)) == {0.25}


def test_a_lognormal_has_its_median_and_its_tail() -> None:
    times = sorted(drawn(Lognormal(0.1, 0.5)))
    assert times[2000] == pytest.approx(0.1, rel=0.05)
    assert times[3960] == pytest.approx(0.1 * math.exp(2.326 * 0.5), rel=0.1)
    assert drawn(Lognormal(0.1, 0.0), 10) == pytest.approx([0.1] * 10)


def test_an_exponential_has_its_mean_and_no_memory() -> None:
    times = drawn(Exponential(0.2))
    assert statistics.mean(times) == pytest.approx(0.2, rel=0.06)
    later = [time - 0.2 for time in times if time > 0.2]
    assert statistics.mean(later) == pytest.approx(0.2, rel=0.12)


def test_measured_times_come_as_often_as_they_were_measured() -> None:
    times = drawn(Measured((0.1, 0.1, 0.4)))
    assert set(times) == {0.1, 0.4}
    assert times.count(0.1) / len(times) == pytest.approx(2 / 3, abs=0.03)


def test_replicas_may_have_laws_of_their_own() -> None:
    law = PerReplica({1: Constant(5.0)}, Constant(1.0))
    assert [drawn(law, 1, replica=replica) for replica in range(3)] == [[1.0], [5.0], [1.0]]


def test_seconds_are_laws_inside_of_laws_too() -> None:
    assert PerReplica({1: 5.0}, 1.0) == PerReplica({1: Constant(5.0)}, Constant(1.0))
    assert Spread(0.1, 0.5) == Spread(Constant(0.1), 0.5)


def test_a_spread_makes_replicas_differ_for_good() -> None:
    law = Spread(Constant(0.1), 0.5)
    times = [drawn(law, 5, seed=seed) for seed in range(400)]
    assert all(len(set(one)) == 1 for one in times), "each is always as fast as it is"
    factors = [math.log(one[0] / 0.1) for one in times]
    assert statistics.mean(factors) == pytest.approx(0.0, abs=0.08)
    assert statistics.stdev(factors) == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize(
    "law", [Lognormal(0.1, 0.5), Exponential(0.1), Measured((0.1, 0.2, 0.3)), Spread(Exponential(1.0), 0.3)]
)
def test_equal_generators_give_equal_times(law: Law) -> None:
    assert drawn(law, 20) == drawn(law, 20) != drawn(law, 20, seed=1)


def test_a_number_is_a_constant_law() -> None:
    assert law_of("compute", 2) == Constant(2)
    assert law_of("compute", Exponential(1.0)) == Exponential(1.0)


NONSENSE: list[Any] = [
    (lambda: Constant(-1), "seconds must be a number of 0 or more, not -1"),
    (lambda: Constant(math.nan), "not nan"),
    (lambda: Constant(math.inf), "not inf"),
    (lambda: Constant("1"), "seconds must be a number"),  # type: ignore[arg-type]
    (lambda: Lognormal(0, 1), "median must be a number of more than 0"),
    (lambda: Lognormal(1, -1), "sigma must be a number of 0 or more"),
    (lambda: Exponential(0), "mean must be a number of more than 0"),
    (lambda: Measured(()), "one or more measured times"),
    (lambda: Measured((1.0, -2.0)), "each of the measured times must be a number of 0 or more, not -2.0"),
    (lambda: PerReplica({-1: Constant(1)}, Constant(1)), "the number of a replica must be a whole number"),
    (lambda: PerReplica([3], 1), "laws must be laws by the replica's number"),  # type: ignore[arg-type]
    (lambda: PerReplica({0: "3"}, 1), "the law of replica 0 must be seconds or a law"),  # type: ignore[dict-item]
    (lambda: PerReplica({0: -3}, 1), "the law of replica 0 must be a number of 0 or more, not -3"),
    (lambda: PerReplica({}, None), "others must be seconds or a law"),  # type: ignore[arg-type]
    (lambda: Spread("0.1", 0.5), "law must be seconds or a law"),  # type: ignore[arg-type]
    (lambda: law_of("latency", -1), "latency must be a number of 0 or more, not -1"),
    (lambda: Spread(Constant(1), math.inf), "sigma must be a number"),
    (lambda: law_of("compute", "fast"), "compute must be seconds or a law such as"),
    (lambda: law_of("compute", Lognormal), "compute must be seconds or a law"),
    (lambda: law_of("compute", True), "compute must be seconds or a law"),
]


@pytest.mark.parametrize(("make", "sentence"), NONSENSE, ids=[sentence for _, sentence in NONSENSE])
def test_a_law_that_cannot_be_is_refused_in_a_sentence(make: Any, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        make()


# From a run


def events(folder: Path, *lines: Any) -> Path:
    (folder / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def progress(*speeds: float) -> dict[str, Any]:
    return {"event": "progress", "replicas": [{"replica": n, "examples_per_second": s} for n, s in enumerate(speeds)]}


def test_times_are_taken_from_what_a_run_tells_of_its_speed(tmp_path: Path) -> None:
    run = events(tmp_path, {"event": "started", "batch_size": 32}, progress(0.0, 64.0), progress(320.0, 64.0))
    times = Measured.of(run).seconds
    assert set(times) == {0.5, 0.1}
    assert times.count(0.1) / len(times) == pytest.approx(320 / 448, abs=0.01), "a batch counts, not a second"
    assert statistics.mean(times) == pytest.approx(3 * 32 / 448, rel=0.02), "as long as they took on the average"


def test_the_slow_beginning_of_a_fast_run_is_as_little_as_it_was(tmp_path: Path) -> None:
    run = events(tmp_path, {"event": "started", "batch_size": 32}, progress(0.5), progress(32000.0))
    assert max(Measured.of(run).seconds) == 0.001


def test_batches_that_take_longer_than_speeds_are_told_over_are_refused(tmp_path: Path) -> None:
    run = events(tmp_path, {"event": "started", "batch_size": 32}, progress(16.0), progress(16.0))
    with pytest.raises(DirectoryError, match="batches take more than 1 s"):
        Measured.of(run)


def test_a_line_that_is_half_written_is_no_harm(tmp_path: Path) -> None:
    run = events(tmp_path, {"event": "started", "batch_size": 32}, progress(64.0))
    with (run / "events.jsonl").open("a") as log:
        log.write('{"event": "progr')
    assert set(Measured.of(run).seconds) == {0.5}


@pytest.mark.parametrize("lines", [[], [{"event": "started"}], [3], [{"event": "started", "batch_size": 32}]])
def test_what_is_no_run_is_said(tmp_path: Path, lines: list[Any]) -> None:
    with pytest.raises(DirectoryError, match=r"events of a run|too short"):
        Measured.of(events(tmp_path, *lines))


def test_a_missing_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(DirectoryError, match=r"nowhere holds no run to take times from: there is no events\.jsonl"):
        Measured.of(tmp_path / "nowhere")


def test_laws_are_values() -> None:
    for one, other in itertools.combinations([Constant(1), Exponential(1), Lognormal(1, 1), Measured((1,))], 2):
        assert one != other
    assert Spread(Constant(1), 0.5) == Spread(Constant(1), 0.5)
