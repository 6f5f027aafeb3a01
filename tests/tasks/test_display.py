"""What a person sees while a corpus is made."""

import sys

import pytest

from distbelief.tasks.display import display


def tell_all(progress: bool) -> None:
    with display(progress) as tell:
        for step in range(101):
            tell("making speech", step / 100)


def test_without_a_terminal_there_are_five_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    tell_all(True)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["making speech", *(f"making speech: {n}%" for n in (25, 50, 75, 100))]


def test_on_a_terminal_there_is_a_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    tell_all(True)
    assert "making speech" in capsys.readouterr().err


def test_it_can_be_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    tell_all(False)
    assert capsys.readouterr() == ("", "")


def test_a_function_is_told_itself() -> None:
    told: list[tuple[str, float]] = []
    with display(lambda message, fraction: told.append((message, fraction))) as tell:
        tell("making speech", 0.5)
    assert told == [("making speech", 0.5)]
