"""CURVE keys of a run, and the sockets that take part only with them.

Whoever holds a run's client keys may do anything to its shards; without keys, whoever reaches the port may. So a run
without keys needs a network that is trusted. CURVE also encrypts what travels.
"""

from collections.abc import Callable
from typing import NamedTuple, Self

import zmq
from zmq.utils import z85

from distbelief.links.loop_socket import LoopSocket
from distbelief.links.transfers import FRAME

_LARGEST = FRAME + (1 << 16)
"""Maximum size of one part of a message. The connection of a peer that sends a larger one is closed."""
_QUEUED = 256
"""Messages that wait to be read before a connection is slowed down: a multiple of what honest peers have under way."""
HEARTBEAT_MS = 1000
SILENCE_MS = 3000
"""Heartbeats are sent and checked by ZeroMQ's own thread. A peer that is silent for so long is disconnected."""
_DOMAIN = b"distbelief"


class Keys(NamedTuple):
    """One pair of CURVE keys for the servers of a run and one for its clients, z85. They are secrets of the run."""

    server_public: bytes
    server_secret: bytes
    client_public: bytes
    client_secret: bytes

    @classmethod
    def generate(cls) -> Self:
        """New keys, of the operating system's chance."""
        return cls(*zmq.curve_keypair(), *zmq.curve_keypair())

    def for_client(self) -> "Keys":
        """The keys that a client needs: without the server's secret."""
        return self._replace(server_secret=b"")


def server_socket(context: zmq.Context[zmq.Socket[bytes]], keys: Keys | None) -> zmq.Socket[bytes]:
    """A ROUTER that lets in clients that have the client's key. `admit` has to run in its context."""
    socket = context.socket(zmq.ROUTER)
    _configure(socket)
    # A message to a peer that has gone is an error, instead of dropped: that is how the server learns of it.
    socket.router_mandatory = 1
    if keys is not None:
        socket.curve_server = 1
        socket.curve_secretkey = keys.server_secret
        socket.zap_domain = _DOMAIN
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
    return socket


def client_socket(context: zmq.Context[zmq.Socket[bytes]], keys: Keys | None) -> zmq.Socket[bytes]:
    """A DEALER that talks to servers that have the server's secret key."""
    socket = context.socket(zmq.DEALER)
    _configure(socket)
    # Without a connection a message is an error, instead of sent later: by then its call has been given up.
    socket.immediate = 1
    if keys is not None:
        socket.curve_serverkey = keys.server_public
        socket.curve_publickey = keys.client_public
        socket.curve_secretkey = keys.client_secret
    return socket


def _configure(socket: zmq.Socket[bytes]) -> None:
    socket.linger = 0
    # The windows of the transfers bound what waits to be sent.
    socket.sndhwm = 0
    socket.rcvhwm = _QUEUED
    socket.maxmsgsize = _LARGEST
    socket.heartbeat_ivl = HEARTBEAT_MS
    socket.heartbeat_timeout = SILENCE_MS
    socket.heartbeat_ttl = SILENCE_MS


def admit(context: zmq.Context[zmq.Socket[bytes]], keys: Keys) -> Callable[[], LoopSocket]:
    """Bind the door of a context: it is asked (ZAP, RFC 27) about each client that connects to a server in it.

    Returns the function that opens it in the running loop. Until then, clients wait.
    """
    door = context.socket(zmq.REP)
    door.linger = 0
    door.bind("inproc://zeromq.zap.01")
    allowed = z85.decode(keys.client_public)

    def answer(socket: zmq.Socket[bytes]) -> None:
        version, request, _, _, _, mechanism, *credentials = socket.recv_multipart()
        known = mechanism == b"CURVE" and credentials == [allowed]
        code, text = (b"200", b"OK") if known else (b"400", b"not a client of this run")
        socket.send_multipart([version, request, code, text, b"", b""])

    return lambda: LoopSocket(door, answer)
