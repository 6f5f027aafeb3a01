"""The server's end of the wire: it serves the shards of one process to clients on other machines.

1.  Messages are read in the caller's event loop, which only moves bytes. Pushes and commands run in a thread of their
    own for each shard, one at a time: a kernel takes long, and so does waiting for a lock. They are the only pushes of
    this process, since a shard's lock may be the process's.
2.  A fetch takes no lock. The version is read first, then the parameters travel from the shard's own memory.
3.  Processes on the server's node push through mapped memory: while fetches wait, the shards are looked at each half
    millisecond.
4.  A peer that has gone is forgotten, with its waiting fetches and open transfers. ZeroMQ's heartbeats notice it; the
    server learns of it when a message to the peer fails.
5.  What a peer sends is checked before it is used. A request that cannot be served is refused, and harms no other.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, final

import msgspec
import torch
import zmq
from torch import Tensor

from distbelief.errors import UsageError
from distbelief.links import wire_messages as m
from distbelief.links.codec import Codec, codec_of, decode_push, encoded_bytes
from distbelief.links.keys import Keys, admit, server_socket
from distbelief.links.loop_socket import LoopSocket
from distbelief.links.transfers import Buffers, Incoming, Outgoing, Part, bytes_of, frames, kept_frames
from distbelief.ports import Capture, Command, Fence, Push, PushRecord, Reply, Restore, SetLiving, Snapshot, Version
from distbelief.server.host import ShardHost

_LOOK_S = 0.0005
"""Interval at which a shard is looked at while fetches wait for it."""
_PROBE_S = 1.0
"""Interval at which the server finds out which peers have gone."""
MAX_CALLS = 256
"""Maximum number of calls of one peer at a time."""
_DECODER = msgspec.msgpack.Decoder(m.ToServer)
_ENCODER = msgspec.msgpack.Encoder()
_PROBE = _ENCODER.encode(m.Welcome())


@final
class _Served:
    """A shard, the thread that runs what changes it, and memory for decoded pushes."""

    def __init__(self, host: ShardHost) -> None:
        self.host = host
        self.spec = host.shard.spec
        self.frames = kept_frames(bytes_of(host.shard.parameters))
        self.thread = ThreadPoolExecutor(1, f"shard {host.number}")
        self._codecs: dict[str, Codec] = {}
        self._decoded: Tensor | None = None

    def codec(self, name: str) -> Codec:
        """The codec of a name; raises `Unfit`."""
        if name not in self._codecs:
            try:
                self._codecs[name] = codec_of(name)
            except UsageError as error:
                raise m.Unfit(str(error)) from None
        return self._codecs[name]

    def push(self, request: m.PushRequest, head: m.PushHead, encoded: Tensor) -> Reply:
        """Decode a push and pass it to the shard; in the thread."""
        codec = self.codec(request.codec)
        gradients: Sequence[Tensor] | None
        if codec.name == "float32":
            sizes = [(part.stop - part.start) * self.spec.dtype.itemsize for part in head.slices]
            gradients = [part.view(self.spec.dtype) for part in encoded.split(sizes)]
        else:
            if self._decoded is None:
                self._decoded = torch.empty(self.spec.elements, dtype=self.spec.dtype)
            gradients = decode_push(codec, head.slices, encoded, self._decoded)
        if gradients is None:
            raise m.Unfit("the encoded gradient is not finite")
        sender = request.replica, request.incarnation, request.sequence
        push = Push(*sender, head.version, head.work, head.slices, gradients, request.weight)
        self._require_hearing(push)
        return self.host.shard.push(push)

    def execute(self, command: Command) -> Any:
        """Have the shard obey a command; in the thread."""
        self._require_hearing(command)
        return self.host.shard.execute(command)

    def _require_hearing(self, request: Push | Command) -> None:
        if not self.host.hears(request):
            raise ConnectionRefusedError("the shard has lost its memory, and is not yet restored")


class _Transfer(NamedTuple):
    """A request whose bytes are arriving, and what to do when they are there."""

    incoming: Incoming
    buffer: Tensor
    then: Callable[[], object]


@final
class _Peer:
    """A connection that has said hello."""

    def __init__(self, identity: bytes) -> None:
        self.identity = identity
        self.waiting: dict[int, _Served] = {}
        self.running: dict[int, bool] = {}
        """Calls in a shard's thread, and whether they are still to be answered."""
        self.incoming: dict[int, _Transfer] = {}
        self.outgoing: dict[int, tuple[Outgoing, Tensor | None]] = {}

    @property
    def calls(self) -> int:
        """Number of calls that are not ended."""
        return len(self.waiting) + len(self.running) + len(self.incoming) + len(self.outgoing)

    def caller(self, call: int) -> str:
        """The name of a waiting fetch at a host."""
        return f"{self.identity.hex()} {call}"


@final
class WireServer:
    """Serves shards, by their numbers, at a port of `host`. Made inside the loop that runs it, or before.

    `address`: "tcp://host:port". `keys`: only clients with the client's key are let in, and all is encrypted; None: the
    network is trusted. `run`: a client that was made for another run is refused.
    """

    def __init__(
        self, hosts: Mapping[int, ShardHost], *, host: str = "127.0.0.1", keys: Keys | None, run: str = ""
    ) -> None:
        self._shards = {number: _Served(shard) for number, shard in hosts.items()}
        self._run = run
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._open_door = None if keys is None else admit(self._context, keys)
        self._listening = server_socket(self._context, keys)
        self._listening.bind(f"tcp://{host}:*")
        self.address = str(self._listening.getsockopt_string(zmq.LAST_ENDPOINT)).rstrip("\0")
        self._sockets: list[LoopSocket] = []
        self._peers: dict[bytes, _Peer] = {}
        self._buffers = Buffers()
        self._looking = False
        self._handlers: dict[type, Callable[[_Peer, _Served, Any], object]] = {
            m.FetchRequest: self._fetch,
            m.NumbersRequest: self._numbers,
            m.PushRequest: self._push,
            m.LivingRequest: self._set_living,
            m.FenceRequest: self._fence,
            m.CaptureRequest: self._capture,
            m.RestoreRequest: self._restore,
        }

    async def run(self) -> None:
        """Serve until cancelled, in the running loop."""
        self._loop = asyncio.get_running_loop()
        self._sockets = [LoopSocket(self._listening, self._receive)]
        if self._open_door is not None:
            self._sockets.append(self._open_door())
        try:
            while True:
                await asyncio.sleep(_PROBE_S)
                for peer in list(self._peers.values()):
                    self._send(peer, _PROBE)
        finally:
            self.close()

    def close(self) -> None:
        """Close the port and drop all calls. What a shard's thread is doing it finishes."""
        for peer in list(self._peers.values()):
            self._forget(peer)
        for socket in self._sockets:
            socket.close()
        for served in self._shards.values():
            served.thread.shutdown(wait=False, cancel_futures=True)
        self._context.destroy(linger=0)

    def _receive(self, socket: zmq.Socket[bytes]) -> None:
        identity = socket.recv()
        if not socket.getsockopt(zmq.RCVMORE):
            return
        try:
            message = _DECODER.decode(socket.recv())
        except msgspec.DecodeError:
            return
        peer = self._peers.get(identity)
        if isinstance(message, m.Hello):
            self._greet(identity, message)
        elif peer is None:
            if isinstance(message, m.Request):
                self._refuse(_Peer(identity), message.call, "nothing is served before a hello", gone=True)
        elif isinstance(message, m.Request):
            self._serve(peer, message)
        elif isinstance(message, m.Data):
            self._take(peer, message.call)
        elif isinstance(message, m.More) and message.call in peer.outgoing:
            peer.outgoing[message.call][0].extend(message.frames)
            self._pump(peer, message.call)
        elif isinstance(message, m.Cancel):
            self._end(peer, message.call)
        elif isinstance(message, m.Received):
            outgoing, buffer = peer.outgoing.pop(message.call, (None, None))
            if outgoing is not None and not outgoing.left and buffer is not None:
                self._buffers.give(buffer)

    def _greet(self, identity: bytes, hello: m.Hello) -> None:
        peer = _Peer(identity)
        if (hello.protocol, hello.run) != (m.PROTOCOL, self._run):
            self._refuse(peer, 0, "this server is of another run, or speaks another version of the protocol", gone=True)
            return
        self._peers.setdefault(identity, peer)
        self._send(peer, m.Welcome())

    def _serve(self, peer: _Peer, request: m.Request) -> None:
        served = self._shards.get(request.shard)
        if served is None:
            self._refuse(peer, request.call, f"shard {request.shard} is not at this server", gone=True)
            return
        # The number of a call that is not ended yet ends it: honest clients never use a number twice.
        self._end(peer, request.call)
        try:
            if peer.calls >= MAX_CALLS:
                raise m.Unfit(f"more than {MAX_CALLS} calls at a time")
            self._handlers[type(request)](peer, served, request)
        except m.Unfit as error:
            self._refuse(peer, request.call, str(error), gone=False)

    def _fetch(self, peer: _Peer, served: _Served, request: m.FetchRequest) -> None:
        peer.waiting[request.call] = served
        at_least = Version(request.term, request.updates)
        served.host.wait(at_least, peer.caller(request.call), partial(self._send_parameters, peer, served, request))
        if request.call in peer.waiting and not self._looking:
            self._looking = True
            self._loop.call_later(_LOOK_S, self._look)

    def _look(self) -> None:
        for served in self._shards.values():
            served.host.look()
        self._looking = any(served.host.waiting for served in self._shards.values())
        if self._looking:
            self._loop.call_later(_LOOK_S, self._look)

    def _send_parameters(self, peer: _Peer, served: _Served, request: m.FetchRequest) -> None:
        peer.waiting.pop(request.call, None)
        version, parameters = served.host.shard.version, served.host.shard.parameters
        self._transfer(peer, m.Fetched(request.call, parameters.nbytes, version), served.frames)

    def _numbers(self, peer: _Peer, served: _Served, request: m.NumbersRequest) -> None:
        numbers = served.host.shard.numbers.clone()
        self._transfer(peer, m.Copied(request.call, numbers.nbytes), frames([bytes_of(numbers)]))

    def _push(self, peer: _Peer, served: _Served, request: m.PushRequest) -> None:
        head = m.check_push(request, served.spec)
        if request.nbytes != encoded_bytes(served.codec(request.codec), head.slices, served.spec.dtype):
            raise m.Unfit(f"{request.nbytes} bytes are not a gradient of its slices")
        encoded = self._buffers.take(request.nbytes)

        def reply(found: Reply) -> None:
            self._send(peer, m.Replied(request.call, found))

        self._await_bytes(
            peer, served, request.call, encoded, lambda: served.push(request, head, encoded), reply, kept=True
        )

    def _set_living(self, peer: _Peer, served: _Served, request: m.LivingRequest) -> None:
        command = m.check_living(request.number, request.replicas, request.alone, served.spec)
        self._execute(peer, served, request.call, command)

    def _fence(self, peer: _Peer, served: _Served, request: m.FenceRequest) -> None:
        m.check_replicas(served.spec, [request.replica])
        self._execute(peer, served, request.call, Fence(request.replica, request.incarnation))

    def _execute(self, peer: _Peer, served: _Served, call: int, command: SetLiving | Fence) -> None:
        def answer(found: PushRecord | None) -> None:
            self._send(peer, m.Obeyed(call, found))

        self._in_thread(peer, served, call, lambda: served.execute(command), answer)

    def _capture(self, peer: _Peer, served: _Served, request: m.CaptureRequest) -> None:
        spec = served.spec
        wanted = m.check_capture(request, spec)
        buffer = self._buffers.take(m.elements(wanted) * spec.dtype.itemsize)
        sizes = [(part.stop - part.start) * spec.dtype.itemsize for slices in wanted.values() for part in slices]
        copies = buffer.split(sizes) if sizes else ()
        targets = iter(copies)
        into = {name: [(part, next(targets).view(spec.dtype)) for part in slices] for name, slices in wanted.items()}

        def answer(found: Snapshot) -> None:
            views = [bytes_of(found.numbers), *map(bytes_of, copies)]
            self._transfer(peer, m.Copied(request.call, sum(map(len, views))), frames(views), buffer)

        self._in_thread(peer, served, request.call, lambda: served.execute(Capture(into)), answer)

    def _restore(self, peer: _Peer, served: _Served, request: m.RestoreRequest) -> None:
        spec = served.spec
        m.check_names(request.vectors, spec)
        living = m.check_living(*request.living, spec)
        sizes = [8 * spec.numbers, *[spec.elements * spec.dtype.itemsize] * len(request.vectors)]
        if request.nbytes != sum(sizes) or len(request.fenced) > spec.replicas:
            raise m.Unfit(f"{request.nbytes} bytes and {len(request.fenced)} fences are not of such a shard")
        buffer = self._buffers.take(request.nbytes)
        numbers, *vectors = buffer.split(sizes)
        named = {name: vector.view(spec.dtype) for name, vector in zip(request.vectors, vectors, strict=True)}
        snapshot = Snapshot(numbers.view(torch.int64), named)
        command: Command = Restore(request.term, snapshot, tuple(request.fenced), living)

        def answer(_: object) -> None:
            self._send(peer, m.Obeyed(request.call, None))

        self._await_bytes(peer, served, request.call, buffer, lambda: served.execute(command), answer, kept=False)

    def _await_bytes(
        self,
        peer: _Peer,
        served: _Served,
        call: int,
        buffer: Tensor,
        work: Callable[[], Any],
        answer: Callable[[Any], None],
        *,
        kept: bool,
    ) -> None:
        """Have `work` run in the shard's thread when `buffer` is full. The message's own parts are the first bytes."""

        def then() -> None:
            self._in_thread(peer, served, call, work, answer, buffer if kept else None)

        peer.incoming[call] = _Transfer(Incoming([bytes_of(buffer)]), buffer, then)
        self._take(peer, call)

    def _take(self, peer: _Peer, call: int) -> None:
        """Receive a frame of a transfer, if it is one."""
        if (transfer := peer.incoming.get(call)) is None:
            return
        if not transfer.incoming.take(self._listening):
            self._end(peer, call)
            self._refuse(peer, call, "more bytes than were announced", gone=False)
        elif not transfer.incoming.left:
            del peer.incoming[call]
            transfer.then()
        elif asked := transfer.incoming.asks():
            self._send(peer, m.More(call, asked))

    def _in_thread(
        self,
        peer: _Peer,
        served: _Served,
        call: int,
        work: Callable[[], Any],
        answer: Callable[[Any], None],
        buffer: Tensor | None = None,
    ) -> None:
        """Run `work` in the shard's thread, then answer; `buffer` is free again when it has run."""

        def ended(future: "asyncio.Future[Any]") -> None:
            if future.cancelled() or self._listening.closed:
                return
            if buffer is not None:
                self._buffers.give(buffer)
            present = peer.running.pop(call, False)
            if (error := future.exception()) is not None:
                # What is lost comes back: the caller is to try again.
                gone = isinstance(error, ConnectionRefusedError)
                self._refuse(peer, call, f"{type(error).__name__}: {error}", gone=gone)
            elif present:
                answer(future.result())
            served.host.look()

        peer.running[call] = True
        self._loop.run_in_executor(served.thread, work).add_done_callback(ended)

    def _transfer(
        self, peer: _Peer, header: m.Fetched | m.Copied, cut: Iterable[Sequence[Part]], buffer: Tensor | None = None
    ) -> None:
        """Send a header and what it announces. `buffer`, if any, is used again once all of it has been received."""
        outgoing = Outgoing(header.nbytes, cut)
        peer.outgoing[header.call] = outgoing, buffer
        if self._send(peer, header, *outgoing.first()):
            self._pump(peer, header.call)

    def _pump(self, peer: _Peer, call: int) -> None:
        outgoing, buffer = peer.outgoing[call]
        for frame in outgoing.ready():
            if not self._send(peer, m.Data(call), *frame):
                return
        if not outgoing.left and buffer is None:
            self._end(peer, call)

    def _end(self, peer: _Peer, call: int) -> None:
        """Drop what is left of a call."""
        if (served := peer.waiting.pop(call, None)) is not None:
            served.host.forget(peer.caller(call))
        if (transfer := peer.incoming.pop(call, None)) is not None:
            self._buffers.give(transfer.buffer)
        peer.outgoing.pop(call, None)
        if call in peer.running:
            peer.running[call] = False

    def _forget(self, peer: _Peer) -> None:
        for call in [*peer.waiting, *peer.incoming, *peer.outgoing, *peer.running]:
            self._end(peer, call)
        self._peers.pop(peer.identity, None)

    def _refuse(self, peer: _Peer, call: int, reason: str, *, gone: bool) -> None:
        self._send(peer, m.Refused(call, reason, gone))

    def _send(self, peer: _Peer, message: m.Message | bytes, *parts: Part) -> bool:
        header = message if isinstance(message, bytes) else _ENCODER.encode(message)
        sent = self._sockets[0].send(peer.identity, header, *parts)
        if not sent:
            self._forget(peer)
        return sent
