"""The wire link: how a replica or the controller reaches shards on other machines, over ZeroMQ.

1.  A client is one connection to one server, for all of its shards. Calls share it frame by frame.
2.  When the connection is lost, every call under way raises `ConnectionError`: its outcome is unknown. ZeroMQ connects
    again by itself. A call waits for a connection for `CONNECT_S`, then raises `ConnectionError`.
3.  A call that is given up is taken back at the server, as far as it has not been executed.
4.  Time-outs are the caller's. `transferring` says whether it makes sense to wait on.
"""

import asyncio
import itertools
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, TypeVar, final

import msgspec
import torch
import zmq
from torch import Tensor
from zmq.utils.monitor import parse_monitor_message

from distbelief.errors import InvariantViolated
from distbelief.links import wire_messages as m
from distbelief.links.codec import AS_IS, Codec, Encoder
from distbelief.links.keys import Keys, client_socket
from distbelief.links.loop_socket import LoopSocket
from distbelief.links.transfers import Incoming, Outgoing, Part, bytes_of, frames
from distbelief.links.wire_server import WireServer
from distbelief.ports import (
    ORIGIN,
    Answer,
    Capture,
    Command,
    Fence,
    Push,
    Reply,
    Restore,
    Snapshot,
    Version,
)
from distbelief.server.block import ShardSpec

__all__ = ["Keys", "WireClient", "WireLink", "WireServer"]

CONNECT_S = 3.0
"""How long a call waits for a connection."""
STALLED_S = 5.0
"""A transfer without progress for so long makes no progress. A slow network moves a few frames in it."""
_MOST_NUMBERS = 1 << 28
"""Maximum number of bytes of a shard's integers."""
_DECODER = msgspec.msgpack.Decoder(m.ToClient)
_ENCODER = msgspec.msgpack.Encoder()
_LIFE = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
A = TypeVar("A", m.Fetched, m.Replied, m.Obeyed, m.Copied)
Place = Callable[[int], Sequence[memoryview]]
"""Returns the memory for an answer of so many bytes; raises `ConnectionError` if no such answer is expected."""


T = TypeVar("T")


def _nowhere(nbytes: int) -> Sequence[memoryview]:
    raise ConnectionError(f"the server sends {nbytes} bytes that were not asked for")


def _exactly(views: Sequence[memoryview]) -> Place:
    """An answer of exactly the size of some memory."""
    size = sum(map(len, views))

    def place(nbytes: int) -> Sequence[memoryview]:
        if nbytes != size:
            raise ConnectionError(f"the server sends {nbytes} bytes, not {size}: it has another shard")
        return views

    return place


async def _finish(work: Coroutine[Any, Any, T]) -> T:
    """Wait for work in a thread. One who gives up waits for its end all the same: it uses what the next one needs."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


@final
class _Call:
    """A call under way."""

    def __init__(self, answer: "asyncio.Future[Any]", outgoing: Outgoing, place: Place, progress: "Progress") -> None:
        self.answer = answer
        self.outgoing = outgoing
        self.place = place
        self.progress = progress
        self.header: m.Message | None = None
        self.incoming: Incoming | None = None

    @property
    def moves(self) -> bool:
        """Whether bytes of it are under way."""
        return bool(self.outgoing.nbytes) or self.incoming is not None

    def fail(self, error: Exception) -> None:
        """End it with an error."""
        if not self.answer.done():
            self.answer.set_exception(error)


@final
class Progress:
    """The calls of one link, and when a frame of one of them last moved."""

    def __init__(self) -> None:
        self.calls: set[_Call] = set()
        self.moved = 0.0


@final
class WireClient:
    """One connection to a `WireServer`; made, used and closed inside a running loop.

    `keys`: those of the server's run. `run`: as given to the server.
    """

    def __init__(self, address: str, keys: Keys | None, *, run: str = "") -> None:
        self.address = address
        self._run = run
        self._loop = asyncio.get_running_loop()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        socket = client_socket(self._context, keys)
        self._monitor = LoopSocket(socket.get_monitor_socket(_LIFE), self._hear)
        self._monitored = socket
        self._socket = LoopSocket(socket, self._receive)
        self._welcome = asyncio.Event()
        self._turned_away = ""
        self._calls: dict[int, _Call] = {}
        self._next = itertools.count(1)
        socket.connect(address)

    def link(self, shard: int, spec: ShardSpec, codec: Codec = AS_IS) -> "WireLink":
        """A link to one shard. `codec`: how its pushes are encoded; see `codec_of`."""
        return WireLink(self, shard, spec, codec)

    async def numbers(self, shard: int) -> Tensor:
        """The integers of a shard's block as they are now, int64, for those who watch. The caller owns them."""
        found = torch.empty(0, dtype=torch.int64)

        def place(nbytes: int) -> Sequence[memoryview]:
            nonlocal found
            if nbytes % 8 or nbytes > _MOST_NUMBERS:
                raise ConnectionError(f"{nbytes} bytes are not the integers of a shard")
            found = torch.empty(nbytes // 8, dtype=torch.int64)
            return [bytes_of(found)]

        await self.call(m.Copied, lambda call: m.NumbersRequest(call, shard), Progress(), place=place)
        return found

    def close(self) -> None:
        """Close the connection. Calls under way and later ones raise `ConnectionError`."""
        if self._monitored.closed:
            return
        self._lost("the connection was closed")
        self._monitored.disable_monitor()
        self._monitor.close()
        self._socket.close()
        self._context.destroy(linger=0)

    async def call(
        self,
        kind: type[A],
        request: Callable[[int], m.Request],
        progress: Progress,
        *,
        views: Sequence[memoryview] = (),
        place: Place = _nowhere,
    ) -> A:
        """Make a call, whose number is given to `request`, and wait for an answer of a kind. `views` go with it."""
        await self._connection()
        number = next(self._next)
        call = _Call(self._loop.create_future(), Outgoing(sum(map(len, views)), frames(views)), place, progress)
        self._calls[number] = call
        progress.calls.add(call)
        progress.moved = self._loop.time()
        try:
            if not self._send(request(number), *call.outgoing.first()):
                raise ConnectionError(f"there is no connection to {self.address}")
            self._pump(number, call)
            answer = await call.answer
        except BaseException:
            # Without a connection there is nothing to take back.
            self._send(m.Cancel(number))
            raise
        finally:
            del self._calls[number]
            progress.calls.discard(call)
        if not isinstance(answer, kind):
            raise ConnectionError(f"the server answers with {type(answer).__name__}, not with {kind.__name__}")
        if isinstance(answer, m.Copied):
            self._send(m.Received(number))
        return answer

    async def _connection(self) -> None:
        """Wait until the server takes requests."""
        if self._monitored.closed:
            raise ConnectionError(f"the connection to {self.address} was closed")
        try:
            async with asyncio.timeout(CONNECT_S):
                await self._welcome.wait()
        except TimeoutError:
            raise ConnectionError(f"no server of this run answers at {self.address}") from None
        if self._turned_away:
            raise ConnectionRefusedError(f"{self.address}: {self._turned_away}")

    def _hear(self, monitor: zmq.Socket[bytes]) -> None:
        event = parse_monitor_message(monitor.recv_multipart())["event"]
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._send(m.Hello(m.PROTOCOL, self._run))
        else:
            self._lost(f"the connection to {self.address} was lost")

    def _lost(self, reason: str) -> None:
        self._welcome.clear()
        self._turned_away = ""
        for call in self._calls.values():
            call.fail(ConnectionError(reason))

    def _receive(self, socket: zmq.Socket[bytes]) -> None:
        try:
            message = _DECODER.decode(socket.recv())
        except msgspec.DecodeError:
            return
        if isinstance(message, m.Welcome):
            self._welcome.set()
            return
        if isinstance(message, m.Refused) and not message.call:
            self._turned_away = message.reason
            self._welcome.set()
            return
        call = self._calls.get(message.call)
        if call is None or call.answer.done():
            return
        if isinstance(message, m.Refused):
            kind = ConnectionRefusedError if message.gone else InvariantViolated
            call.fail(kind(f"{self.address}: {message.reason}"))
            return
        call.progress.moved = self._loop.time()
        if isinstance(message, m.More):
            call.outgoing.extend(message.frames)
            self._pump(message.call, call)
        elif isinstance(message, m.Data):
            self._take(message.call, call)
        else:
            self._begin(call, message)

    def _begin(self, call: _Call, header: m.Fetched | m.Replied | m.Obeyed | m.Copied) -> None:
        """Take an answer, or its beginning."""
        if isinstance(header, m.Replied | m.Obeyed):
            call.answer.set_result(header)
            return
        if call.incoming is not None:
            return
        try:
            call.incoming = Incoming(call.place(header.nbytes))
        except ConnectionError as error:
            call.fail(error)
            return
        call.header = header
        self._take(header.call, call)

    def _take(self, number: int, call: _Call) -> None:
        if call.incoming is None:
            return
        if not call.incoming.take(self._socket.socket):
            call.fail(ConnectionError("more bytes arrive than were announced"))
        elif not call.incoming.left:
            call.answer.set_result(call.header)
        elif asked := call.incoming.asks():
            self._send(m.More(number, asked))

    def _pump(self, number: int, call: _Call) -> None:
        header = _ENCODER.encode(m.Data(number))
        for frame in call.outgoing.ready():
            self._socket.send(header, *frame)

    def _send(self, message: m.Message, *parts: Part) -> bool:
        """Send a message; False if there is no connection, of which the monitor tells too."""
        return self._socket.send(_ENCODER.encode(message), *parts)


@final
class WireLink:
    """`ShardLink` to a shard at a `WireServer`. One push at a time travels; the others wait for it."""

    answers_at_once = False

    def __init__(self, client: WireClient, shard: int, spec: ShardSpec, codec: Codec) -> None:
        self._client = client
        self._shard = shard
        self._spec = spec
        self._encoder = Encoder(codec, spec)
        self._progress = Progress()
        self._encoding = asyncio.Lock()

    async def fetch(self, into: Tensor, at_least: Version = ORIGIN) -> Version:
        """Receive the parameters straight into `into`, once the shard has come so far."""
        request = partial(m.FetchRequest, shard=self._shard, term=at_least.term, updates=at_least.updates)
        view = bytes_of(into)
        fetched = await self._client.call(m.Fetched, request, self._progress, place=_exactly([view]))
        return fetched.version

    async def push(self, push: Push) -> Reply:
        """Send a gradient, encoded, and wait for the answer. The same push is sent again as it was."""
        async with self._encoding:
            views = await self._encoded(push)
            request = partial(
                m.PushRequest,
                shard=self._shard,
                nbytes=sum(map(len, views)),
                replica=push.replica,
                incarnation=push.incarnation,
                sequence=push.sequence,
                term=push.version.term,
                updates=push.version.updates,
                work=push.work,
                slices=list(push.slices),
                weight=push.weight,
                codec=self._encoder.codec.name,
            )
            replied = await self._client.call(m.Replied, request, self._progress, views=views)
            if not replied.reply.verdict.used:
                await _finish(asyncio.to_thread(self._encoder.settle, push, replied.reply))
        return replied.reply

    async def _encoded(self, push: Push) -> list[memoryview]:
        if self._encoder.is_encoded(push):
            return self._encoder.encode(push)
        return await _finish(asyncio.to_thread(self._encoder.encode, push))

    async def execute(self, command: Command) -> Answer:
        """Have a command executed. What is captured arrives straight in the command's tensors."""
        if isinstance(command, Capture):
            return await self._capture(command)
        if isinstance(command, Restore):
            await self._restore(command)
            return None
        if isinstance(command, Fence):
            fence = partial(m.FenceRequest, shard=self._shard, replica=command.replica, incarnation=command.incarnation)
            return (await self._client.call(m.Obeyed, fence, self._progress)).record
        living = partial(
            m.LivingRequest,
            shard=self._shard,
            number=command.number,
            replicas=sorted(command.replicas),
            alone=command.alone,
        )
        await self._client.call(m.Obeyed, living, self._progress)
        return None

    async def _capture(self, command: Capture) -> Snapshot:
        numbers = torch.empty(self._spec.numbers, dtype=torch.int64)
        targets = [target for parts in command.into.values() for _, target in parts]
        wanted: list[tuple[str, list[m.Span]]] = [
            (name, [part for part, _ in parts]) for name, parts in command.into.items()
        ]
        request = partial(m.CaptureRequest, shard=self._shard, vectors=wanted)
        views = [bytes_of(numbers), *map(bytes_of, targets)]
        await self._client.call(m.Copied, request, self._progress, place=_exactly(views))
        return Snapshot(numbers, {})

    async def _restore(self, command: Restore) -> None:
        numbers, vectors = command.snapshot
        views = [bytes_of(numbers), *map(bytes_of, vectors.values())]
        living = command.living
        request = partial(
            m.RestoreRequest,
            shard=self._shard,
            nbytes=sum(map(len, views)),
            term=command.term,
            vectors=list(vectors),
            fenced=list(command.fenced),
            living=(living.number, sorted(living.replicas), living.alone),
        )
        await self._client.call(m.Obeyed, request, self._progress, views=views)

    def transferring(self) -> bool:
        """Whether bytes of a call are under way and have moved lately."""
        moving = any(call.moves for call in self._progress.calls)
        return moving and asyncio.get_running_loop().time() - self._progress.moved < STALLED_S
