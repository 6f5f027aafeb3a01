"""Flags: how often, and sentences about keywords as sentences about flags."""

from typing import Any

import click
import pytest

import distbelief as db
from distbelief.cli.flags import _rule, as_flags, at_once, end, often
from distbelief.errors import UsageError


def every(text: str | None) -> db.Every | None:
    return often(click.Context(click.Command("train")), click.Option(["--evaluate-every"]), text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("30s", db.Every(seconds=30)),
        ("0.5s", db.Every(seconds=0.5)),
        ("5m", db.Every(seconds=300)),
        ("2h", db.Every(seconds=7200)),
        ("20000", db.Every(examples=20000)),
        (None, None),
    ],
)
def test_how_often(text: str | None, expected: db.Every | None) -> None:
    assert every(text) == expected


@pytest.mark.parametrize("text", ["", "often", "-5s", "5 m", "0", "0s", "1.5", "nan", "5d", "1e3"])
def test_what_is_no_how_often(text: str) -> None:
    with pytest.raises(click.BadParameter):
        every(text)


def replicas(text: str | None) -> int | tuple[int, int] | None:
    return at_once(click.Context(click.Command("train")), click.Option(["--replicas"]), text)


@pytest.mark.parametrize(("text", "expected"), [("4", 4), ("4-16", (4, 16)), ("16-4", (16, 4)), ("0", 0), (None, None)])
def test_how_many_replicas(text: str | None, expected: int | tuple[int, int] | None) -> None:
    """Which of them make sense is the method's affair."""
    assert replicas(text) == expected


@pytest.mark.parametrize("text", ["", "many", "-1", "4-", "4..16", "4-16-20", "1.5", "4, 16"])
def test_what_is_no_number_of_replicas(text: str) -> None:
    with pytest.raises(click.BadParameter, match="such as 4-16"):
        replicas(text)


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("set clip_norm, or lower lr", "set --clip-norm, or lower lr"),
        ("needs overlap=0 and n_fetch=1: so", "needs --overlap 0 and --n-fetch 1: so"),
        ("go on with it (resume=True)", "go on with it (--resume)"),
        ("replicas must be 1", "replicas must be 1"),
        ("use step= for it", "use step= for it"),
        ("my_batch_size, batch_sizes and --batch-size", "my_batch_size, batch_sizes and --batch-size"),
        ("Buffered(m=2)", "Buffered(m=2)"),
    ],
)
def test_keywords_are_told_as_flags(sentence: str, expected: str) -> None:
    assert as_flags(sentence) == expected


def test_an_end_is_what_was_asked_for() -> None:
    names = ("epochs", "seconds", "examples", "patience", "monitor", "min_delta")
    none: dict[str, Any] = dict.fromkeys(names) | {"target": ()}

    def own() -> db.Until:
        return db.Until(epochs=7, patience=2)

    assert end(none, own) is None
    found = end(none | {"epochs": 3, "target": ("accuracy=0.5", "loss=1e-3")}, own)
    assert found == db.Until(epochs=3, target={"accuracy": 0.5, "loss": 0.001})
    judged = end(none | {"monitor": "loss", "min_delta": 0.1}, own)
    assert judged == db.Until(epochs=7, patience=2, monitor="loss", min_delta=0.1)


def rule(own: Any, **flags: Any) -> Any:
    none = dict.fromkeys(("optimizer", "lr", "schedule", "warmup", "floor", "momentum", "weight_decay"))
    return _rule(own, none | flags)


def test_a_schedule_from_flags_has_the_rate_for_its_peak() -> None:
    own = db.AdamW(0.1, groups={"*.bias": {"lr": 1.0}})
    found = rule(own, schedule="cosine", warmup=0.05, floor=0.1)
    assert found == db.AdamW(db.Cosine(0.1, warmup=0.05, floor=0.1), groups={"*.bias": {"lr": 1.0}})
    assert rule(found, warmup=500.0).lr == db.Cosine(0.1, warmup=500, floor=0.1)
    assert rule(found, lr=0.2).lr == db.Cosine(0.2, warmup=0.05, floor=0.1)
    assert rule(found, schedule="linear").lr == db.Linear(0.1)
    assert rule(found, schedule="constant").lr == 0.1
    assert rule(found) == found
    assert rule(db.SGD(db.Steps({0: 0.1})), lr=0.2).lr == 0.2
    assert rule(own, optimizer="adam", lr=0.2) == db.Adam(0.2, groups={"*.bias": {"lr": 1.0}})


@pytest.mark.parametrize(
    ("own", "flags", "complaint"),
    [
        (db.SGD(0.1), {"warmup": 0.1}, "--warmup belongs to a schedule: give --schedule cosine or linear"),
        (db.SGD(0.1), {"schedule": "constant", "floor": 0.1}, "--floor belongs to a schedule"),
        (db.SGD(db.Steps({0: 0.1})), {"schedule": "linear"}, "give its peak, as in --lr 0.1"),
        (db.SGD(0.1), {"schedule": "cosine", "floor": 2.0}, "Cosine needs"),
        (db.Adam(0.1, groups={"*": {"eps": 1.0}}), {"optimizer": "sgd"}, "SGD has no option 'eps'"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(own: Any, flags: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        rule(own, **flags)
