"""A worker's requests to the controller, over its channel."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, final

from distbelief.engines.worker.channel import Channel
from distbelief.ports import Lease, Outcome


@final
class ChannelRequests:
    """`Requests` over a channel, inside a running loop. Where the controller is gone, there is no more work.

    `publish` is called before the controller is told that a lease is done.
    """

    def __init__(self, channel: Channel, publish: Callable[[], object] = lambda: None) -> None:
        self._channel = channel
        self._publish = publish
        self._open: dict[tuple[str, int], asyncio.Future[Any]] = {}
        asyncio.get_running_loop().add_reader(channel.fileno(), self._read)

    def lease(self, number: int) -> asyncio.Future[Lease | None]:
        """Ask for work."""
        return self._request("lease", number)

    def done(self, number: int, lease: int, outcomes: Sequence[Outcome]) -> asyncio.Future[None]:
        """Account for a lease."""
        self._publish()
        return self._request("done", number, lease=lease, outcomes=outcomes)

    def _request(self, kind: str, number: int, **content: Any) -> asyncio.Future[Any]:
        self._open[kind, number] = future = asyncio.get_running_loop().create_future()
        if not self._channel.send(kind, number=number, **content):
            self._end()
        return future

    def _read(self) -> None:
        for message in self._channel.pending():
            lease = message.get("lease")
            self._open.pop((message["kind"], message["number"])).set_result(None if lease is None else Lease(*lease))
        if self._channel.over:
            self._end()

    def _end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._channel.fileno())
        for future in self._open.values():
            future.set_result(None)
        self._open.clear()
