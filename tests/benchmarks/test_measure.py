import json
import math
from pathlib import Path

import pytest

from benchmarks import measure
from benchmarks.measure import Comparison, Spread, figure, interleave


def test_a_ratio_is_the_median_of_the_ratios_of_pairs_not_the_ratio_of_medians() -> None:
    c = Comparison(what="", unit="examples/s", ours=[10, 40, 90], theirs=[10, 20, 100], bar=0.95)
    assert c.ratio == Spread(median=1.0, low=0.9, high=2.0)
    assert c.met is True


def test_of_times_the_ratio_says_how_much_faster_we_are() -> None:
    c = Comparison(what="", unit="ms", ours=[20.0], theirs=[10.0], bar=0.9, less_is_better=True)
    assert c.ratio == Spread(0.5, 0.5, 0.5)
    assert c.met is False


def test_a_prediction_is_as_good_as_it_is_near_whichever_way_it_errs() -> None:
    c = Comparison(what="", unit="", ours=[8.0, 10.0, 20.0], theirs=[10.0, 8.0, 10.0], bar=0.85, prediction=True)
    assert c.ratio == Spread(0.8, 0.5, 0.8)
    assert c.met is False


def test_one_figure_of_a_rival_is_a_limit_for_all_of_ours() -> None:
    c = Comparison(what="", unit="s", ours=[3, 6, 12], theirs=[6], bar=1, less_is_better=True)
    assert c.ratio == Spread(1.0, 0.5, 2.0)
    assert c.met is True


def test_without_a_rival_or_a_bar_nothing_is_met_or_missed() -> None:
    assert Comparison(what="", unit="ms", ours=[1.0], bar=0.9).met is None
    assert Comparison(what="", unit="ms", ours=[1.0], theirs=[1.0]).met is None


def test_figures_that_do_not_pair_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        _ = Comparison(what="", unit="ms", ours=[1.0, 2.0, 3.0], theirs=[1.0, 2.0]).ratio


def test_arms_take_turns_each_second_round_in_reverse() -> None:
    calls: list[str] = []

    def arm(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    figures = interleave({name: lambda name=name: arm(name) for name in "ab"}, 3)  # type: ignore[misc]
    assert "".join(calls) == "abbaab"
    assert figures == {"a": [1, 4, 5], "b": [2, 3, 6]}


@pytest.mark.parametrize(
    ("value", "text"), [(1234.5, "1,234"), (12.34, "12.3"), (1.234, "1.23"), (0.01234, "0.012"), (0, "0")]
)
def test_figures_have_three_digits(value: float, text: str) -> None:
    assert figure(value) == text


def test_a_report_keeps_every_figure_and_a_quick_one_replaces_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    row = Comparison(what="a push", unit="ms", ours=[1.0, 2.0], rival="a copy", theirs=[2.0, 2.0], bar=2.0)
    measure.report("server", "Title", {"cores": 2}, [row], quick=True)
    written = json.loads((tmp_path / "server-quick.json").read_text())
    assert written["rows"][0]["ours"] == [1.0, 2.0]
    assert written["rows"][0]["ratio"] == {"median": 0.75, "low": 0.5, "high": 1.0}
    assert written["rows"][0]["met"] is False
    assert "a push" in capsys.readouterr().out
    assert not (tmp_path / "server.json").exists()


def test_what_never_came_is_null_in_the_report_and_the_worst_in_the_ratio(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    row = Comparison(what="", unit="s", ours=[math.inf, 2.0, math.inf], theirs=[4.0] * 3, bar=1, less_is_better=True)
    measure.report("server", "Title", {}, [row], quick=False, runs={"a run": {"seconds": 2.0}})
    written = json.loads((tmp_path / "server.json").read_text())
    assert written["rows"][0]["ours"] == [None, 2.0, None]
    assert written["rows"][0]["ratio"] == {"median": 0.0, "low": 0.0, "high": 2.0}
    assert written["runs"] == {"a run": {"seconds": 2.0}}
