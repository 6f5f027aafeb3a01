"""Flags: how often, and sentences about keywords as sentences about flags."""

from typing import Any

import click
import pytest

import distbelief as db
from distbelief.cli.flags import as_flags, end, often


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
    none: dict[str, Any] = dict.fromkeys(("epochs", "seconds", "examples", "patience")) | {"target": ()}
    assert end(none) is None
    found = end(none | {"epochs": 3, "target": ("accuracy=0.5", "loss=1e-3")})
    assert found == db.Until(epochs=3, target={"accuracy": 0.5, "loss": 0.001})
