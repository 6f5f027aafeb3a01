"""Codecs: how gradients are encoded before they travel.

1.  A codec encodes each slice of a gradient by itself, into a number of bytes that depends on its length alone.
2.  A push is encoded once. What is sent again is what was sent: `Encoder` keeps the bytes until the next push.
3.  Error feedback (Seide et al. 2014): what the encoding of a gradient loses is kept, per shard and by the pusher, and
    added to the next gradient. Nothing is lost for good but what the last push of a replica leaves.
"""

from collections.abc import Sequence
from typing import Protocol, final

import torch
from torch import Tensor

from distbelief.errors import UsageError
from distbelief.links.transfers import bytes_of
from distbelief.ports import Push, Reply, Slice
from distbelief.server.block import ShardSpec

BLOCK = 1024
"""Elements that share a scale under `int8`."""
_CHUNK = 128 * BLOCK
"""Elements that are encoded at a time, so that the passes over them stay in the cache."""
_LEAST_SCALE, _LARGEST_SCALE = 1e-36, 2.67e36
"""A smaller scale is 0: its inverse would overflow. 127 times the largest is finite. The error keeps the rest."""


class Codec(Protocol):
    """A way to encode vectors."""

    name: str
    feedback: bool
    """Whether the pusher keeps the error, and adds it to the next gradient."""

    def nbytes(self, elements: int, dtype: torch.dtype) -> int:
        """Size of the encoding, a multiple of 4."""

    def encode_(self, values: Tensor, into: Tensor) -> None:
        """Encode flat `values` into uint8. With `feedback`, `values` is replaced by what the encoding loses."""

    def decode_(self, encoded: Tensor, into: Tensor) -> bool:
        """Decode into flat `into`; False if the bytes are no encoding of finite values."""


@final
class AsIs:
    """`float32`: the vector's own elements, whatever its dtype. They are sent from where they lie."""

    name = "float32"
    feedback = False

    def nbytes(self, elements: int, dtype: torch.dtype) -> int:
        """As in memory."""
        return elements * dtype.itemsize

    def encode_(self, values: Tensor, into: Tensor) -> None:
        """Copy."""
        into.copy_(values.view(torch.uint8))

    def decode_(self, encoded: Tensor, into: Tensor) -> bool:
        """Copy. The pusher has checked that they are finite."""
        into.view(torch.uint8).copy_(encoded)
        return True


@final
class BFloat16:
    """`bf16`: rounded to 8 bits of mantissa, without feedback. Half the bytes of float32."""

    name = "bf16"
    feedback = False

    def nbytes(self, elements: int, dtype: torch.dtype) -> int:
        """Two bytes an element."""
        return -(-elements // 2) * 4

    def encode_(self, values: Tensor, into: Tensor) -> None:
        """Round to nearest. The largest values would become infinite; they become the largest that there is."""
        largest = torch.finfo(torch.bfloat16).max
        into[: 2 * len(values)].view(torch.bfloat16).copy_(values).clamp_(-largest, largest)

    def decode_(self, encoded: Tensor, into: Tensor) -> bool:
        """Widen. The pusher has checked that the gradient is finite."""
        into.copy_(encoded[: 2 * len(into)].view(torch.bfloat16))
        return True


@final
class Int8:
    """`int8` with error feedback: blocks of 1024 elements, each with the scale (largest element) / 127.

    Layout: the float32 scales of the blocks, then a byte for each element. 3.98 times fewer bytes than float32.
    """

    name = "int8"
    feedback = True

    def __init__(self) -> None:
        self._rounded = torch.empty(0)

    def nbytes(self, elements: int, dtype: torch.dtype) -> int:
        """A byte an element and four bytes a block."""
        return 4 * -(-elements // BLOCK) + -(-elements // 4) * 4

    def encode_(self, values: Tensor, into: Tensor) -> None:
        """Round to multiples of the block's scale, and leave the rounding errors in `values`."""
        scales, whole = self._scales(into, len(values))
        for low, high, width in _chunks(len(values)):
            block = values[low:high].view(-1, width)
            scale = scales[low // BLOCK : -(-high // BLOCK)].unsqueeze(1)
            if self._rounded.numel() < _CHUNK or self._rounded.dtype != values.dtype:
                self._rounded = torch.empty(_CHUNK, dtype=values.dtype)
            rounded = self._rounded[: high - low].view(-1, width)
            # `torch.linalg.vector_norm` takes fifteen times as long.
            scale.copy_(torch.abs(block, out=rounded).amax(dim=1, keepdim=True).div_(127))
            scale.mul_(scale >= _LEAST_SCALE).clamp_(max=_LARGEST_SCALE)
            torch.mul(block, scale.clamp(min=_LEAST_SCALE).reciprocal_().mul_(scale > 0), out=rounded).round_().clamp_(
                -127, 127
            )
            whole[low:high].view(-1, width).copy_(rounded)
            block.addcmul_(rounded, scale.to(values.dtype), value=-1)

    def decode_(self, encoded: Tensor, into: Tensor) -> bool:
        """Multiply by the scales."""
        scales, whole = self._scales(encoded, len(into))
        if not bool(torch.isfinite(scales.sum())):
            return False
        for low, high, width in _chunks(len(into)):
            scale = scales[low // BLOCK : -(-high // BLOCK)].unsqueeze(1)
            block = into[low:high].view(-1, width)
            block.copy_(whole[low:high].view(-1, width)).mul_(scale)
        return True

    def _scales(self, encoded: Tensor, elements: int) -> tuple[Tensor, Tensor]:
        end = 4 * -(-elements // BLOCK)
        return encoded[:end].view(torch.float32), encoded[end : end + elements].view(torch.int8)


def _chunks(elements: int) -> list[tuple[int, int, int]]:
    """Bounds of whole blocks that are encoded at a time, and their width; last the block that is not whole."""
    whole = elements // BLOCK * BLOCK
    chunks = [(low, min(low + _CHUNK, whole), BLOCK) for low in range(0, whole, _CHUNK)]
    return chunks if whole == elements else [*chunks, (whole, elements, elements - whole)]


AS_IS = AsIs()
_KINDS: dict[str, type[AsIs] | type[BFloat16] | type[Int8]] = {kind.name: kind for kind in (AsIs, BFloat16, Int8)}
CODECS = tuple(_KINDS)
"""Names of the codecs."""


def codec_of(name: str) -> Codec:
    """The codec of a name; `UsageError` if there is none. It is one link's own: it keeps working memory."""
    if name not in _KINDS:
        raise UsageError(f"codec must be one of {', '.join(CODECS)}, not {name!r}")
    return _KINDS[name]()


def encoded_bytes(codec: Codec, slices: Sequence[Slice], dtype: torch.dtype) -> int:
    """Size of an encoded push."""
    return sum(codec.nbytes(part.stop - part.start, dtype) for part in slices)


def decode_push(codec: Codec, slices: Sequence[Slice], encoded: Tensor, into: Tensor) -> list[Tensor] | None:
    """Decode a push into a vector of the shard's length. Returns views of it, or None if it holds no finite values."""
    gradients, start = [], 0
    for part in slices:
        end = start + codec.nbytes(part.stop - part.start, into.dtype)
        gradients.append(into[part.start : part.stop])
        if not codec.decode_(encoded[start:end], gradients[-1]):
            return None
        start = end
    return gradients


@final
class Encoder:
    """Encodes the pushes to one shard. Not for several threads at once."""

    def __init__(self, codec: Codec, spec: ShardSpec) -> None:
        self.codec = codec
        self._dtype = spec.dtype
        self._elements = spec.elements
        self._encoded = torch.empty(0, dtype=torch.uint8)
        self._errors: Tensor | None = None
        self._key = (-1, -1)
        self._settled = True
        self._views: list[memoryview] = []

    def is_encoded(self, push: Push) -> bool:
        """Whether the push is the last one that was encoded, or needs no encoding."""
        return isinstance(self.codec, AsIs) or (push.incarnation, push.sequence) == self._key

    def encode(self, push: Push) -> list[memoryview]:
        """The bytes of a push. They are the same ones when the push is encoded again, and change with the next push."""
        if isinstance(self.codec, AsIs):
            return [bytes_of(gradient) for gradient in push.gradients]
        if not self.is_encoded(push):
            nbytes = encoded_bytes(self.codec, push.slices, self._dtype)
            if nbytes > self._encoded.numel():
                self._encoded = torch.empty(nbytes, dtype=torch.uint8)
            for gradient, part, into in self._parts(push):
                self.codec.encode_(self._with_error(part, gradient) if self.codec.feedback else gradient, into)
            self._key, self._settled = (push.incarnation, push.sequence), False
            self._views = [bytes_of(self._encoded[:nbytes])]
        return self._views

    def settle(self, push: Push, reply: Reply) -> None:
        """Learn what became of a push. The error that a refused push carried along is kept for the next one."""
        if self._settled or (push.incarnation, push.sequence) != self._key:
            return
        self._settled = True
        if self._errors is None or reply.verdict.used:
            return
        for gradient, part, encoded in self._parts(push):
            decoded = torch.empty_like(gradient)
            self.codec.decode_(encoded, decoded)
            self._errors[part.start : part.stop].add_(decoded).sub_(gradient)

    def _with_error(self, part: Slice, gradient: Tensor) -> Tensor:
        if self._errors is None:
            self._errors = torch.zeros(self._elements, dtype=self._dtype)
        return self._errors[part.start : part.stop].add_(gradient)

    def _parts(self, push: Push) -> list[tuple[Tensor, Slice, Tensor]]:
        """Each gradient, its slice, and the place of its encoding."""
        parts, start = [], 0
        for gradient, part in zip(push.gradients, push.slices, strict=True):
            end = start + self.codec.nbytes(part.stop - part.start, self._dtype)
            parts.append((gradient, part, self._encoded[start:end]))
            start = end
        return parts
