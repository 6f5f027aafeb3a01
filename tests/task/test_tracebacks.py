"""Tracebacks as the user wants to see them."""

import json

from distbelief.task.tracebacks import user_frames


def test_only_the_users_own_frames_are_shown() -> None:
    try:
        json.loads("{")
    except json.JSONDecodeError as error:
        text = user_frames(error)
    assert "test_tracebacks.py" in text
    assert "json/decoder.py" not in text
