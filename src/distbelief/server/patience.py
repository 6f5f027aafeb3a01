"""Patience: calls that are made again until they are answered. Repeating is safe, as the rules of the ports say."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

T = TypeVar("T")


class Patience(NamedTuple):
    """How long an answer is waited for before the call is made again; twice as long each time, up to a limit."""

    first_s: float
    longest_s: float


async def insist(
    patience: Patience | None, attempt: Callable[[], Awaitable[T]], transferring: Callable[[], bool] = lambda: False
) -> T:
    """Attempt until there is an answer, whether it is lost or the link says that it failed; None: once.

    An attempt times out when nothing has been `transferring` for so long: a large transfer that makes progress never
    does.
    """
    if patience is None:
        return await attempt()
    loop, seconds = asyncio.get_running_loop(), patience.first_s
    while True:
        begun = loop.time()
        try:
            async with asyncio.timeout(seconds) as limit:
                with _extended(limit, seconds, transferring):
                    return await attempt()
        except (TimeoutError, ConnectionError):
            # A link that fails at once is given the same time to recover.
            await asyncio.sleep(begun + seconds - loop.time())
            seconds = min(2 * seconds, patience.longest_s)


@contextmanager
def _extended(limit: asyncio.Timeout, seconds: float, transferring: Callable[[], bool]) -> Iterator[None]:
    """Put a limit off as long as something moves."""
    loop = asyncio.get_running_loop()
    timer = loop.call_later(seconds / 2, lambda: look())

    def look() -> None:
        nonlocal timer
        if limit.expired():
            return
        if transferring():
            limit.reschedule(loop.time() + seconds)
        timer = loop.call_later(seconds / 2, look)

    try:
        yield
    finally:
        timer.cancel()
