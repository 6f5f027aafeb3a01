"""Codecs: what is decoded is what was encoded, what is lost is kept, and what is sent again is what was sent."""

import pytest
import torch
from torch import Tensor

from distbelief.errors import UsageError
from distbelief.links.codec import BLOCK, CODECS, Encoder, codec_of, decode_push, encoded_bytes
from distbelief.ports import ORIGIN, Push, Reply, Slice, Verdict, Work
from distbelief.server.admission import Asynchronous
from distbelief.server.block import ShardSpec
from distbelief.server.rules import SGD
from tests.shards import at

every_codec = pytest.mark.parametrize("name", CODECS)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
LENGTHS = (1, 5, BLOCK - 1, BLOCK, BLOCK + 1, 300 * BLOCK + 17)


def spec_of(elements: int, dtype: torch.dtype = torch.float32) -> ShardSpec:
    return ShardSpec(elements, dtype, SGD(1.0), Asynchronous(), 1)


def push_of(gradients: list[Tensor], slices: list[Slice], sequence: int = 1) -> Push:
    return Push(0, 1, sequence, ORIGIN, Work(1, 0, 1, 1), tuple(slices), gradients)


def decoded(encoder: Encoder, push: Push, elements: int) -> list[Tensor]:
    encoded = torch.cat([torch.frombuffer(bytearray(view), dtype=torch.uint8) for view in encoder.encode(push)])
    assert len(encoded) == encoded_bytes(encoder.codec, push.slices, push.gradients[0].dtype)
    into = torch.full((elements,), 7.0, dtype=push.gradients[0].dtype)
    found = decode_push(codec_of(encoder.codec.name), push.slices, encoded, into)
    assert found is not None
    return found


def reply(verdict: Verdict) -> Reply:
    return Reply(verdict, "", 0, at(1), ORIGIN)


@every_codec
@every_dtype
def test_what_is_decoded_is_near_what_was_encoded(name: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(length, generator=generator, dtype=dtype) for length in LENGTHS]
    slices, start = [], 3
    for length in LENGTHS:
        slices.append(Slice(start, start + length))
        start += length + 2
    found = decoded(Encoder(codec_of(name), spec_of(start, dtype)), push_of(gradients, slices), start)
    for gradient, near in zip(gradients, found, strict=True):
        error = {"float32": 0.0, "bf16": 2**-8, "int8": 0.51 / 127}[name]
        assert (gradient - near).abs().max() <= error * gradient.abs().max()


@pytest.mark.parametrize(("name", "times"), [("float32", 1.0), ("bf16", 2.0), ("int8", 3.9)])
def test_a_codec_takes_so_many_times_fewer_bytes(name: str, times: float) -> None:
    elements = 10**6
    encoder = Encoder(codec_of(name), spec_of(elements))
    views = encoder.encode(push_of([torch.randn(elements)], [Slice(0, elements)]))
    assert 4 * elements / sum(map(len, views)) >= times


def test_float32_is_sent_from_where_it_lies() -> None:
    gradient = torch.zeros(16)
    (view,) = Encoder(codec_of("float32"), spec_of(16)).encode(push_of([gradient], [Slice(0, 16)]))
    gradient.fill_(1.0)
    assert bytes(view) == bytes(gradient.numpy().data)


def test_what_is_lost_of_a_gradient_is_added_to_the_next() -> None:
    """So after any number of pushes no more is missing than one rounding error."""
    elements = 3 * BLOCK + 100
    encoder, whole = Encoder(codec_of("int8"), spec_of(elements)), [Slice(0, elements)]
    total, arrived = torch.zeros(elements, dtype=torch.float64), torch.zeros(elements, dtype=torch.float64)
    for sequence in range(1, 51):
        gradient = torch.randn(elements, generator=torch.Generator().manual_seed(sequence)) ** 3
        total += gradient
        arrived += decoded(encoder, push_of([gradient], whole, sequence), elements)[0]
        encoder.settle(push_of([gradient], whole, sequence), reply(Verdict.APPLIED))
    assert (total - arrived).abs().max() < 0.7
    assert total.abs().max() > 50


def test_small_elements_beside_large_ones_arrive_in_time() -> None:
    gradient = torch.full((BLOCK,), 1e-3)
    gradient[0] = 1.0
    encoder, whole = Encoder(codec_of("int8"), spec_of(BLOCK)), [Slice(0, BLOCK)]
    pushes = [push_of([gradient], whole, sequence) for sequence in range(1, 101)]
    arrived = torch.stack([decoded(encoder, push, BLOCK)[0] for push in pushes])
    assert not arrived[0, 1:].any()
    assert (arrived.sum(0)[1:] - 0.1).abs().max() < 1 / 127


@every_codec
def test_the_pushers_tensors_are_left_as_they_are(name: str) -> None:
    gradient = torch.linspace(-1, 1, 100)
    encoder = Encoder(codec_of(name), spec_of(100))
    for sequence in (1, 2):
        encoder.encode(push_of([gradient], [Slice(0, 100)], sequence))
        encoder.settle(push_of([gradient], [Slice(0, 100)], sequence), reply(Verdict.TOO_OLD))
    assert torch.equal(gradient, torch.linspace(-1, 1, 100))


@every_codec
def test_what_is_sent_again_is_what_was_sent(name: str) -> None:
    encoder = Encoder(codec_of(name), spec_of(100))
    first, second = (push_of([torch.randn(100)], [Slice(0, 100)], sequence) for sequence in (1, 2))
    sent = [b"".join(encoder.encode(push)) for push in (first, first, second, second)]
    assert sent[0] == sent[1] != sent[2] == sent[3]


def test_the_error_that_a_refused_push_carried_is_kept() -> None:
    """The gradient itself is lost, as the policy wants it; what earlier ones are still owed is not."""
    whole = [Slice(0, BLOCK)]
    encoder = Encoder(codec_of("int8"), spec_of(BLOCK))
    first, refused, third = (push_of([torch.randn(BLOCK)], whole, sequence) for sequence in (1, 2, 3))
    arrived = decoded(encoder, first, BLOCK)[0].clone()
    encoder.settle(first, reply(Verdict.APPLIED))
    encoder.encode(refused)
    for _ in range(2):
        encoder.settle(refused, reply(Verdict.TOO_OLD))
    arrived += decoded(encoder, third, BLOCK)[0]
    assert (first.gradients[0] + third.gradients[0] - arrived).abs().max() < 0.02


def test_a_parameter_that_takes_no_part_keeps_its_error() -> None:
    encoder = Encoder(codec_of("int8"), spec_of(2 * BLOCK))
    low, high = Slice(0, BLOCK), Slice(BLOCK, 2 * BLOCK)
    gradients = [torch.randn(BLOCK), torch.randn(BLOCK)]
    both = decoded(encoder, push_of(gradients, [low, high], 1), 2 * BLOCK)
    decoded(encoder, push_of(gradients[:1], [low], 2), 2 * BLOCK)
    third = decoded(encoder, push_of([torch.zeros(BLOCK)], [high], 3), 2 * BLOCK)
    assert (gradients[1] - both[1] - third[0]).abs().max() < (gradients[1] - both[1]).abs().max() / 50


def test_extreme_values_stay_finite() -> None:
    largest = torch.finfo(torch.float32).max
    values = torch.tensor([0.0, 1e-45, -1e-40, 1e-38, largest, -largest])
    for name in CODECS:
        for gradient in (values, values[:4], values[:1]):
            encoder = Encoder(codec_of(name), spec_of(len(gradient)))
            (found,) = decoded(encoder, push_of([gradient], [Slice(0, len(gradient))]), len(gradient))
            assert torch.isfinite(found).all()


def test_scales_that_are_not_finite_are_no_encoding() -> None:
    codec = codec_of("int8")
    encoded = torch.zeros(codec.nbytes(BLOCK, torch.float32), dtype=torch.uint8)
    encoded[:4].view(torch.float32).fill_(float("nan"))
    assert decode_push(codec, [Slice(0, BLOCK)], encoded, torch.zeros(BLOCK)) is None


def test_a_codec_that_does_not_exist_is_refused_with_those_that_do() -> None:
    with pytest.raises(UsageError, match="one of float32, bf16, int8, not 'int4'"):
        codec_of("int4")
