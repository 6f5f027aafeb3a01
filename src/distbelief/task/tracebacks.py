"""Tracebacks as the user wants to see them."""

import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LIBRARIES = tuple(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))


def user_frames(error: BaseException) -> str:
    """The frames of a traceback that are the user's own code, as text; nothing where none is."""
    others = (str(Path(__file__).parents[1]), "<frozen", *_LIBRARIES)
    frames = traceback.extract_tb(error.__traceback__)
    return "".join(traceback.format_list([f for f in frames if not f.filename.startswith(others)]))


def described(error: BaseException) -> str:
    """An error's `repr`; or only its type, where that raises, too."""
    try:
        return repr(error)
    # Whatever the user's class does there.
    except BaseException:  # noqa: BLE001
        return f"{type(error).__name__}, which has no text"


@contextmanager
def noted(note: str) -> Iterator[None]:
    """Have whatever a block raises say where that was."""
    try:
        yield
    except Exception as error:
        error.add_note(note)
        raise
