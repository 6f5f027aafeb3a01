"""Frames: what leaves in them arrives in its place, never more than the window is under way, and memory is kept."""

from collections.abc import Iterator

import pytest
import torch
import zmq

from distbelief.links import transfers
from distbelief.links.transfers import ASKED, FRAME, WINDOW, Buffers, Incoming, Outgoing, bytes_of, frames, kept_frames

Pair = tuple[zmq.Socket[bytes], zmq.Socket[bytes]]


@pytest.fixture
def pair() -> Iterator[Pair]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    ends = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
    ends[0].bind("inproc://test")
    ends[1].connect("inproc://test")
    yield ends
    context.destroy(linger=0)


def send(socket: zmq.Socket[bytes], *parts: bytes) -> None:
    socket.send_multipart([b"header", *parts])


def take(incoming: Incoming, socket: zmq.Socket[bytes]) -> bool:
    assert socket.recv() == b"header"
    return incoming.take(socket)


def test_frames_are_full_and_hold_every_byte_in_order() -> None:
    views = [memoryview(bytes([n]) * size) for n, size in enumerate((5, 0, 2 * FRAME, FRAME - 7, 3))]
    cut = list(frames(views))
    sizes = [sum(map(len, parts)) for parts in cut]
    assert sizes == [FRAME, FRAME, FRAME, 1]
    assert b"".join(part for parts in cut for part in parts) == b"".join(views)


def test_a_frame_has_a_limited_number_of_parts() -> None:
    cut = list(frames([memoryview(b"x")] * 150))
    assert [len(parts) for parts in cut] == [64, 64, 22]


def test_no_more_than_the_window_is_under_way_whatever_the_receiver_asks_for() -> None:
    view = memoryview(bytes(40 * FRAME))
    outgoing = Outgoing(len(view), frames([view]))
    assert outgoing.first()
    assert len(list(outgoing.ready())) == WINDOW - 1
    assert list(outgoing.ready()) == []
    outgoing.extend(ASKED)
    assert len(list(outgoing.ready())) == ASKED
    outgoing.extend(10**15)
    assert len(list(outgoing.ready())) == WINDOW
    assert outgoing.left == (40 - 2 * WINDOW - ASKED) * FRAME


def test_a_transfer_of_nothing_has_an_empty_frame() -> None:
    assert list(Outgoing(0, frames([])).first()) == []


def test_what_arrives_fills_the_views_and_nothing_else(pair: Pair) -> None:
    room = torch.zeros(12, dtype=torch.uint8)
    incoming = Incoming([bytes_of(room[1:5]), bytes_of(room[5:5]), bytes_of(room[6:11])])
    send(pair[0], b"ab", b"cd")
    send(pair[0], b"efghi")
    assert take(incoming, pair[1])
    assert incoming.left == 5
    assert take(incoming, pair[1])
    assert incoming.left == 0
    assert bytes(bytes_of(room)) == b"\0abcd\0efghi\0"


@pytest.mark.parametrize("parts", [(b"abcde",), (b"abcd", b"e"), (b"abcd", b""), (b"abc", b"de")])
def test_what_does_not_fit_is_not_taken(parts: tuple[bytes, ...], pair: Pair) -> None:
    room = torch.zeros(6, dtype=torch.uint8)
    send(pair[0], *parts)
    assert not take(Incoming([bytes_of(room[:4])]), pair[1])
    assert room[4:].tolist() == [0, 0]


def test_a_receiver_asks_for_frames_as_it_takes_them_and_not_for_what_does_not_exist(pair: Pair) -> None:
    room = torch.zeros(ASKED + 1, dtype=torch.uint8)
    incoming = Incoming([bytes_of(room)])
    asked = []
    for _ in range(ASKED + 1):
        send(pair[0], b"x")
        assert take(incoming, pair[1])
        asked.append(incoming.asks())
    assert asked == [*[0] * (ASKED - 1), ASKED, 0]


def test_kept_frames_can_be_sent_again_and_show_the_memory_as_it_is_then(pair: Pair) -> None:
    memory = torch.zeros(1 << 18)
    ((frame,),) = kept_frames(bytes_of(memory))
    for value in (1.0, 2.0):
        memory.fill_(value)
        pair[0].send(frame, copy=False)
        assert torch.frombuffer(bytearray(pair[1].recv()), dtype=torch.float32).eq(value).all()


def test_bytes_of_a_tensor_are_its_memory() -> None:
    tensor = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    bytes_of(tensor)[:8] = bytes(torch.ones(1, dtype=torch.float64).numpy().data.cast("B"))
    assert tensor[0, 0].item() == 1.0
    with pytest.raises(RuntimeError):
        bytes_of(torch.zeros(4, 4)[:, 1])


def test_a_buffer_that_was_given_back_is_used_again() -> None:
    buffers = Buffers()
    first = buffers.take(1000)
    place = first.data_ptr()
    buffers.give(first)
    again = buffers.take(900)
    assert (again.data_ptr(), again.numel()) == (place, 900)
    assert buffers.take(900).data_ptr() != place, "it has an owner"
    buffers.give(again)
    assert buffers.take(1000).data_ptr() == place
    assert buffers.take(10).numel() == 10


def test_a_large_buffer_is_not_spent_on_a_small_transfer() -> None:
    buffers = Buffers()
    large = buffers.take(1 << 20)
    buffers.give(large)
    assert buffers.take(100).data_ptr() != large.data_ptr()
    assert transfers.Buffers().take(0).numel() == 0
