"""What a request says is checked against the shard before it is used."""

import math
from typing import Any

import msgspec
import pytest
import torch

from distbelief.links import wire_messages as m
from distbelief.ports import Slice, Version, Work
from distbelief.server.admission import Asynchronous
from distbelief.server.block import ShardSpec
from distbelief.server.rules import Adagrad

SPEC = ShardSpec(64, torch.float32, Adagrad(1.0), Asynchronous(), 3)
PUSH = m.PushRequest(1, 0, 256, 0, 1, 1, 0, 0, (1, 0, 1, 8, 0, 0), [(0, 16), (32, 64)], 0.0, "float32")


def changed(**fields: Any) -> m.PushRequest:
    return m.PushRequest(**{**msgspec.structs.asdict(PUSH), **fields})


def test_a_header_arrives_as_it_left() -> None:
    found = msgspec.msgpack.decode(msgspec.msgpack.encode(PUSH), type=m.ToServer)
    assert found == PUSH


def test_a_push_that_fits_is_taken() -> None:
    assert m.check_push(PUSH, SPEC) == (Version(0, 0), Work(1, 0, 1, 8), (Slice(0, 16), Slice(32, 64)))


@pytest.mark.parametrize(
    "fields",
    [
        {"replica": 3},
        {"sequence": 0},
        {"slices": [(0, 65)]},
        {"slices": [(16, 16)]},
        {"slices": [(0, 10**15)]},
        {"slices": [(0, 16), (15, 20)]},
        {"slices": [(16, 32), (0, 16)]},
        {"weight": math.nan},
        {"weight": math.inf},
        {"weight": -1.0},
        {"weight": 1.0, "work": (1, 2, 2, 8, 0, 0)},
        {"work": (1, 2, 1, 8, 0, 0)},
    ],
    ids=str,
)
def test_a_push_that_does_not_fit_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(m.Unfit):
        m.check_push(changed(**fields), SPEC)


@pytest.mark.parametrize(
    "vectors",
    [
        [("momentum", [(0, 1)])],
        [("sum", [(0, 1)]), ("sum", [(0, 1)])],
        [("sum", [(0, 10**15)])],
        [("sum", [(0, 64)] * 3)],
    ],
    ids=str,
)
def test_a_capture_of_what_the_shard_does_not_have_is_refused(vectors: list[tuple[str, list[m.Span]]]) -> None:
    with pytest.raises(m.Unfit):
        m.check_capture(m.CaptureRequest(1, 0, vectors), SPEC)


def test_a_replica_without_a_slot_is_refused() -> None:
    with pytest.raises(m.Unfit, match="replica 3 has no slot among 3"):
        m.check_living(1, [0, 3], False, SPEC)
    assert m.check_living(1, [0, 2], True, SPEC) == (1, frozenset({0, 2}), True)


@pytest.mark.parametrize("number", [-1, m.MOST + 1, 2**64 - 1, 1.0, "1", None])
def test_a_number_that_no_shard_could_store_cannot_be_decoded(number: object) -> None:
    with pytest.raises(msgspec.DecodeError):
        msgspec.msgpack.decode(msgspec.msgpack.encode(["FenceRequest", 1, 0, 0, number]), type=m.ToServer)


@pytest.mark.parametrize(
    "content", [[], ["FenceRequest", 1, 0, 0], ["Nothing"], ["FenceRequest", 1, 0, 0, 0, 0], {}, 7]
)
def test_another_shape_cannot_be_decoded(content: object) -> None:
    with pytest.raises(msgspec.DecodeError):
        msgspec.msgpack.decode(msgspec.msgpack.encode(content), type=m.ToServer)
