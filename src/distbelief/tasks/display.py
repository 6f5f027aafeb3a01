"""What a person sees while a corpus is made: a bar on a terminal, plain lines elsewhere, on standard error."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

from distbelief.tasks.cache import Tell

_LINES = 4
"""Lines that are printed from the beginning to the end of one piece of work."""


@contextmanager
def display(progress: bool | Tell) -> Iterator[Tell]:
    """A function to tell of progress.

    True shows it as fits where standard error goes, False shows nothing, and a function is called itself, as
    `progress(what is being done, fraction of it that is done)`.
    """
    if callable(progress):
        yield progress
    elif not progress:
        yield lambda message, fraction: None
    elif sys.stderr.isatty():
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        bars: dict[str, TaskID] = {}
        with Progress(*columns, console=Console(stderr=True, markup=False), transient=True) as shown:

            def draw(message: str, fraction: float) -> None:
                if message not in bars:
                    bars[message] = shown.add_task(message, total=1.0)
                shown.update(bars[message], completed=fraction)

            yield draw
    else:
        console = Console(stderr=True, width=200, highlight=False, markup=False)
        printed: dict[str, int] = {}

        def write(message: str, fraction: float) -> None:
            step = int(fraction * _LINES)
            if step > printed.get(message, -1):
                printed[message] = step
                console.print(f"{message}: {fraction:.0%}" if step else message, soft_wrap=True)

        yield write
