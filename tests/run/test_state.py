"""The state of a run in a checkpoint: exactly what was written, or refused."""

import json
import math
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

import distbelief as db
from distbelief.downpour.ledger_state import LedgerState
from distbelief.run.state import (
    FORMAT,
    Changes,
    RunState,
    Totals,
    changes,
    check_tensors,
    flat_state,
    from_json,
    module_values,
    of_kind,
    parameters_into_,
    untrained,
    vectors_like,
)
from distbelief.server.layout import Layout
from tests.states import LEDGER, state


def written(**changes: Any) -> Any:
    """A state as JSON."""
    return json.loads(json.dumps(state(**changes).to_json()))


def test_what_is_written_is_read() -> None:
    assert from_json(written()) == state()


def test_the_keys_are_the_fields() -> None:
    found = written()
    assert found["format"] == FORMAT
    assert found.keys() - {"format"} == {field.name for field in fields(RunState)}
    assert found["method"]["kind"] == "downpour"
    assert found["method"]["state"].keys() == {field.name for field in fields(LedgerState)}
    assert found["totals"].keys() == {field.name for field in fields(Totals)}


def test_a_metric_may_be_any_number() -> None:
    row = {"loss": math.inf, "accuracy": 1.0, "examples": 3, "auc": None}
    assert from_json(written(history=[row])).history == [row]
    (found,) = from_json(written(history=[{"loss": math.nan}])).history
    assert found["loss"] is not None and math.isnan(found["loss"])


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths to everything in a JSON value, but for the rows of the history and what is in them."""
    keys: list[Any] = (
        list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    )
    below = [place for key in keys for place in places(value[key], (*path, key))]
    return [path, *below] if path[:1] != ("history",) or len(path) == 1 else []


def changed(path: tuple[Any, ...], change: Callable[[Any, Any], object]) -> Any:
    """A state as JSON, in which `change(owner, key)` was made at a place."""
    found = written()
    owner = found
    for key in path[:-1]:
        owner = owner[key]
    change(owner, path[-1])
    return found


def put(value: Any, owner: Any, key: Any) -> None:
    owner[key] = value


@pytest.mark.parametrize("path", places(written())[1:], ids=lambda path: ".".join(map(str, path)))
def test_whatever_is_malformed_is_refused(path: tuple[Any, ...]) -> None:
    kind = {("seed",): int, ("data",): str, ("trained", 0): str, ("totals", "seconds"): float}.get(path)
    wrongs: list[Any] = [True, "x", -1, None, {}, [[]], 1.5, {"x": 1}]
    for wrong in wrongs:
        found = changed(path, partial(put, wrong))
        if type(wrong) is kind:
            assert isinstance(from_json(found), RunState)
            continue
        with pytest.raises(ValueError, match=r"\w+ \w+"):
            from_json(found)


@pytest.mark.parametrize(
    "path",
    [path for path in places(written())[1:] if isinstance(path[-1], str)],
    ids=lambda path: ".".join(path) if all(isinstance(part, str) for part in path) else str(path),
)
def test_no_field_may_be_missing_or_added(path: tuple[Any, ...]) -> None:
    def remove(owner: Any, key: Any) -> None:
        del owner[key]

    def add(owner: Any, key: Any) -> None:
        owner["more"] = 1

    for change in (remove, add):
        if change is remove and path[-1] == "poisoned":
            # It was added to the format, and is 0 where it is not told.
            assert from_json(changed(path, change)).method.total.poisoned == 0
            continue
        with pytest.raises(ValueError, match=r"\w+ \w+"):
            from_json(changed(path, change))


@pytest.mark.parametrize("row", [[], {"loss": "0.1"}, {"loss": True}, {"loss": [1]}, None])
def test_what_is_no_row_of_a_history_is_refused(row: Any) -> None:
    with pytest.raises(ValueError, match=r"history\[0\]"):
        from_json(written() | {"history": [row]})


@pytest.mark.parametrize("value", [None, [], "state", {}, {"format": FORMAT}, {"format": FORMAT + 1}])
def test_what_is_no_state_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"the state is (not of format 3|of no known method)"):
        from_json(value)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"term": 0}, "too small"),
        ({"incarnations": (1, -1)}, "too small"),
        ({"updates": -1}, "too small"),
        ({"examples": -1}, "too small"),
        ({"trained": ()}, "missing or not unique"),
        ({"trained": ("w", "w")}, "missing or not unique"),
    ],
)
def test_what_no_run_can_be(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        state(**wrong)


@pytest.mark.parametrize(
    "wrong", [{"seconds": math.nan}, {"seconds": math.inf}, {"staleness": [1, -1]}, {"restarts": -1}]
)
def test_what_no_total_can_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="a total is negative or not finite"):
        Totals(**wrong)


# Tensors


class Mixed(nn.Module):
    """Parameters that are trained and not, and buffers that `state_dict` holds and not."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.second = nn.Linear(4, 2).requires_grad_(False)
        self.register_buffer("kept", torch.arange(3))
        self.register_buffer("left_out", torch.ones(2), persistent=False)


def layout(module: nn.Module) -> Layout:
    return Layout.of((name, p.detach()) for name, p in module.named_parameters() if p.requires_grad)


def everything(module: nn.Module, rule: Any) -> dict[str, torch.Tensor]:
    """A checkpoint's tensors, filled with 7 where the shards fill them."""
    return {
        key: torch.full(like.shape, 7.0) for key, like in vectors_like(layout(module), rule.state).items()
    } | untrained(module)


def test_every_tensor_has_its_key() -> None:
    module, rule = Mixed(), db.Adam(0.1)
    found = everything(module, rule)
    vectors = ("parameters", *rule.state)
    assert found.keys() == {f"{vector}/first.{leaf}" for vector in vectors for leaf in ("weight", "bias")} | {
        "frozen/second.weight",
        "frozen/second.bias",
        "buffers/kept",
        "buffers/left_out",
    }
    assert module_values(found).keys() == {
        *(name for name, _ in module.named_parameters()),
        *(name for name, _ in module.named_buffers()),
    }
    assert of_kind(found, "frozen").keys() == {"second.weight", "second.bias"}


def test_tensors_must_be_those_of_the_state() -> None:
    found = everything(Mixed(), db.SGD(0.1))
    right = state(trained=("first.weight", "first.bias"))
    check_tensors(right, found)
    with pytest.raises(ValueError, match="were trained"):
        check_tensors(state(trained=("first.weight",)), found)
    with pytest.raises(ValueError, match="both trained and not"):
        check_tensors(right, found | {"frozen/first.bias": torch.zeros(4)})


def test_what_differs_from_a_checkpoint() -> None:
    module, rule = Mixed(), db.Adam(0.1)
    found = everything(module, rule)
    before = ("first.weight", "first.bias")
    assert changes(before, found, layout(module), rule.state) == Changes([], [], [])
    assert not changes(before, found, layout(module), rule.state).fresh
    other = changes(before, found, layout(module), db.Adagrad(0.1).state)
    assert other == Changes(sorted(db.Adagrad(0.1).state), [], [])
    assert other.fresh
    module.first.requires_grad_(False)
    assert not changes(("second.bias", *before), found, layout(Mixed()), rule.state).fresh
    module.second.requires_grad_(True)
    turned = changes(before, found, layout(module), rule.state)
    assert turned == Changes([], ["first.weight", "first.bias"], ["second.weight", "second.bias"])
    assert turned.fresh


def test_what_a_checkpoint_does_not_hold_begins_as_it_would() -> None:
    module, rule = Mixed(), db.Adagrad(0.1)
    found = everything(module, rule)
    module.second.requires_grad_(True)
    module.first.weight.requires_grad_(False)
    place = layout(module)
    vector = torch.zeros(place.length)
    parameters_into_(vector, place, found)
    assert {name: float(view.flatten()[0]) for name, view in place.named(vector).items()} == {
        "first.bias": 7.0,
        "second.weight": 0.0,
        "second.bias": 0.0,
    }
    ((name, fill),) = rule.state.items()
    flat = flat_state(place, found, {**rule.state, "average": None}, vector + 1)
    sums, average = place.named(flat[name]), place.named(flat["average"])
    assert (sums["first.bias"] == 7).all()
    assert (sums["second.weight"] == fill).all()
    assert (average["first.bias"] == 8).all()
    assert (average["second.weight"] == 1).all()


def test_a_ledgers_state_is_part_of_it() -> None:
    """Its own rules are those of `LedgerState`."""
    found = written()
    found["method"]["state"]["released"] = []
    with pytest.raises(ValueError, match="does not add up in epoch 1"):
        from_json(found)
    assert from_json(written()).method == LEDGER
