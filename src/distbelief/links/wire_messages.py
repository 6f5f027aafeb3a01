"""The headers of the wire: msgpack arrays of fixed fields, each checked when it is decoded.

1.  The first message of a connection is `Hello`, answered with `Welcome`, or with `Refused` if it is meant for another
    run. Nothing else is served before.
2.  A request names its call; the client numbers its calls. It is answered once, or with `Refused`, and `Cancel` says
    that nobody waits for the answer any more.
3.  A header with `nbytes` announces a transfer of so many bytes, whose first frame it carries. `Data` carries each of
    the following ones; `More` extends the sender's window.
4.  A header that cannot be decoded is dropped with its message. Data of a transfer that nobody knows are dropped too:
    they are what is left of a call that was given up.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, NamedTuple

import msgspec

from distbelief.ports import PushRecord, Reply, SetLiving, Slice, Version, Work
from distbelief.server.block import ShardSpec

PROTOCOL = 1
MOST = 1 << 62
Count = Annotated[int, msgspec.Meta(ge=0, le=MOST)]
"""An integer that fits a shard's block, and so do sums of two."""
Span = tuple[Count, Count]


class Message(msgspec.Struct, array_like=True, tag=True, forbid_unknown_fields=True):
    """A header."""


class Hello(Message):
    """The first message of a client."""

    protocol: int
    run: str


class Welcome(Message):
    """The server takes requests of this connection."""


class Cancel(Message):
    """Nobody waits for the answer to a call any more."""

    call: Count


class Received(Message):
    """All that `Copied` announced has arrived, so its memory is free again."""

    call: Count


class Data(Message):
    """The next frame of the transfer that belongs to a call."""

    call: Count


class More(Message):
    """The receiver of a call's transfer can take `frames` more."""

    call: Count
    frames: Count


class Request(Message):
    """A call to a shard."""

    call: Count
    shard: Count


class FetchRequest(Request):
    """Send the parameters, once the shard has come so far."""

    term: Count
    updates: Count


class NumbersRequest(Request):
    """Send the integers of the block as they are now."""


class PushRequest(Request):
    """A gradient follows: the encoded slices, one after the other."""

    nbytes: Count
    replica: Count
    incarnation: Count
    sequence: Count
    term: Count
    updates: Count
    work: tuple[Count, Count, Count, Count, Count, Count]
    slices: list[Span]
    weight: float
    codec: str


class LivingRequest(Request):
    """The command `SetLiving`."""

    number: Count
    replicas: list[Count]
    alone: bool


class FenceRequest(Request):
    """The command `Fence`."""

    replica: Count
    incarnation: Count


class CaptureRequest(Request):
    """The command `Capture`: the names of vectors, and the slices of each, in the order in which they are sent back."""

    vectors: list[tuple[str, list[Span]]]


class RestoreRequest(Request):
    """The command `Restore`. The snapshot follows: the integers, then whole vectors in the order of `vectors`."""

    nbytes: Count
    term: Count
    vectors: list[str]
    fenced: list[Count]
    living: tuple[Count, list[Count], bool]


class Fetched(Message):
    """The parameters follow, in the state that they have while they are sent."""

    call: Count
    nbytes: Count
    version: Version


class Replied(Message):
    """What became of a push."""

    call: Count
    reply: Reply


class Obeyed(Message):
    """A command was executed. `record`: the answer to `Fence`."""

    call: Count
    record: PushRecord | None


class Copied(Message):
    """Integers, or what was captured, follow: the integers, then the slices in the order of the request."""

    call: Count
    nbytes: Count


class Refused(Message):
    """A call is not served. `gone`: this is no server of that run or shard; else the request itself is at fault."""

    call: Count
    reason: str
    gone: bool


ToServer = (
    Hello
    | Cancel
    | Received
    | Data
    | More
    | FetchRequest
    | NumbersRequest
    | PushRequest
    | LivingRequest
    | FenceRequest
    | CaptureRequest
    | RestoreRequest
)
ToClient = Welcome | Data | More | Fetched | Replied | Obeyed | Copied | Refused


class Unfit(Exception):
    """A request that the shard which it names cannot take; the message says why."""


class PushHead(NamedTuple):
    """A push without its gradients, checked against the shard's spec."""

    version: Version
    work: Work
    slices: tuple[Slice, ...]


def check_push(request: PushRequest, spec: ShardSpec) -> PushHead:
    """Return the values of a push to a shard with this spec; raises `Unfit`."""
    check_replicas(spec, [request.replica])
    slices = spans(request.slices, spec)
    if any(left.stop > right.start for left, right in pairwise(slices)):
        raise Unfit("its slices overlap, or are in another order than the elements")
    work = Work(*request.work)
    if not 0 <= request.weight < math.inf or not request.sequence or work.stop < work.start:
        raise Unfit(f"weight {request.weight}, sequence {request.sequence} or work {work} is none")
    if request.weight and work.stop == work.start:
        raise Unfit("a weight of no batch")
    return PushHead(Version(request.term, request.updates), work, slices)


def spans(found: Sequence[Span], spec: ShardSpec) -> tuple[Slice, ...]:
    """Return slices that lie inside the shard and are not empty; raises `Unfit`."""
    slices = tuple(Slice(*span) for span in found)
    for part in slices:
        if not part.start < part.stop <= spec.elements:
            raise Unfit(f"the elements [{part.start}, {part.stop}) are not among the shard's {spec.elements}")
    return slices


def check_capture(request: CaptureRequest, spec: ShardSpec) -> dict[str, tuple[Slice, ...]]:
    """Return the slices to capture of each vector; raises `Unfit`."""
    check_names([name for name, _ in request.vectors], spec)
    wanted = {name: spans(found, spec) for name, found in request.vectors}
    if elements(wanted) > len(spec.vectors) * spec.elements:
        raise Unfit("more elements than the shard has")
    return wanted


def elements(wanted: Mapping[str, Sequence[Slice]]) -> int:
    """Number of elements in slices of vectors."""
    return sum(part.stop - part.start for slices in wanted.values() for part in slices)


def check_names(names: Sequence[str], spec: ShardSpec) -> None:
    """Raise `Unfit` unless these are different vectors of the shard."""
    if len(set(names)) < len(names) or not set(names) <= spec.vectors.keys():
        raise Unfit(f"the vectors {', '.join(names)} are not among the shard's {', '.join(spec.vectors)}")


def check_replicas(spec: ShardSpec, replicas: Sequence[int]) -> None:
    """Raise `Unfit` unless the shard has a slot for each replica."""
    if replicas and max(replicas) >= spec.replicas:
        raise Unfit(f"replica {max(replicas)} has no slot among {spec.replicas}")


def check_living(number: int, replicas: Sequence[int], alone: bool, spec: ShardSpec) -> SetLiving:
    """Return the command that names the living replicas; raises `Unfit`."""
    check_replicas(spec, replicas)
    return SetLiving(number, frozenset(replicas), alone)
