"""Retries with a growing time-out. A retry is safe: by the rules in `ports.py`, a call takes effect at most once."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")


class Patience(NamedTuple):
    """The time-outs of a retried call: `first_s` at first, doubled for each retry, at most `longest_s`."""

    first_s: float
    longest_s: float


def retry(
    patience: Patience | None,
    attempt: Callable[[], Coroutine[Any, Any, T]],
    transferring: Callable[[], bool] = lambda: False,
) -> Coroutine[Any, Any, T]:
    """Retry `attempt` on a time-out or a `ConnectionError` until it answers. `patience=None`: try once, no time-out.

    The time-out starts anew while `transferring()` is true, so a large transfer that makes progress never times out.
    """
    return attempt() if patience is None else _retry(patience, attempt, transferring)


async def _retry(
    patience: Patience, attempt: Callable[[], Coroutine[Any, Any, T]], transferring: Callable[[], bool]
) -> T:
    loop, seconds = asyncio.get_running_loop(), patience.first_s
    while True:
        begun = loop.time()
        try:
            async with asyncio.timeout(seconds) as limit:
                with _extended(limit, seconds, transferring):
                    return await attempt()
        except (TimeoutError, ConnectionError):
            # Sleep for the rest of the time-out: a link that fails at once gets the same time to recover.
            await asyncio.sleep(begun + seconds - loop.time())
            seconds = min(2 * seconds, patience.longest_s)


@contextmanager
def _extended(limit: asyncio.Timeout, seconds: float, transferring: Callable[[], bool]) -> Iterator[None]:
    """Extend the time-out while `transferring()` is true. Checks twice per time-out."""
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
