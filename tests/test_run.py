"""The run directory and what is read from it."""

import json
from contextlib import closing
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import distbelief as db
from distbelief.errors import DirectoryError
from distbelief.run import RunDirectory, describe, difference, kinds, outline, quantile


def test_a_directory_that_holds_a_run_is_refused(tmp_path: Path) -> None:
    with closing(RunDirectory(tmp_path)) as files:
        files.write_json("method.json", {})
    with pytest.raises(DirectoryError, match="holds a run already"):
        RunDirectory(tmp_path)


def test_fresh_directories_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = set()
    for _ in range(5):
        with closing(RunDirectory(None)) as files:
            paths.add(files.path)
    assert len(paths) == 5


def test_what_is_written_is_json_whatever_it_holds(tmp_path: Path) -> None:
    with closing(RunDirectory(tmp_path / "run")) as files:
        files.write_json(
            "summary.json", {"loss": float("nan"), "rates": (1, 2.5), "path": tmp_path, "3": [float("inf")]}
        )
        files.event("evaluation", {"loss": float("-inf")})
    text = (tmp_path / "run" / "summary.json").read_text()
    assert json.loads(text) == {"loss": None, "rates": [1, 2.5], "path": str(tmp_path), "3": [None]}
    assert "Infinity" not in (tmp_path / "run" / "events.jsonl").read_text()


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(RunDirectory(tmp_path / "run")) as files:
        files.write_json("summary.json", {"a": 1})
        monkeypatch.setattr("distbelief.run.json.dumps", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            files.write_json("summary.json", {"a": 2})
        monkeypatch.undo()
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == {"a": 1}


def test_tied_tensors_are_written_under_each_name(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    module[1].weight = module[0].weight
    with closing(RunDirectory(tmp_path / "run")) as files:
        files.write_model(module)
    state = load_file(tmp_path / "run" / "model.safetensors")
    assert torch.equal(state["0.weight"], state["1.weight"])
    module.load_state_dict(state)


def test_a_method_is_told_in_full() -> None:
    method = describe(db.Downpour(optimizer=db.SGD(db.Cosine(0.1, 1000)), admission=db.Buffered(2)))
    assert method["kind"] == "Downpour"
    assert method["optimizer"]["lr"] == {"kind": "Cosine", "peak": 0.1, "examples": 1000, "warmup": 0}
    assert method["admission"] == {"kind": "Buffered", "m": 2}
    json.dumps(method)


def test_quantiles_of_a_histogram() -> None:
    histogram = torch.tensor([50, 0, 49, 0, 1])
    assert [quantile(histogram, q) for q in (0.1, 0.5, 0.51, 0.99, 1.0)] == [0, 0, 2, 2, 4]
    assert quantile(torch.zeros(5, dtype=torch.int64), 0.5) == 0


def test_where_two_models_differ() -> None:
    one = outline(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)))
    assert one["0.weight"] == "float32 (2, 3)"
    assert difference(one, outline(nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 2)))) == (
        "0.weight was float32 (2, 3) and is float32 (2, 4)"
    )
    assert difference(one, one) == "their tensors come in another order"
    assert difference(one, {}).endswith("and is not there, and 1 more")
    assert difference({}, {"a": "float32 ()"}) == "a was not there and is float32 ()"


def test_kinds_are_those_of_one_example() -> None:
    batch = {"a": torch.zeros(5, 3), "b": (torch.zeros(5).long(), "text")}
    assert kinds(batch) == "{a: float32 (3,), b: (int64 (), str)}"
