"""The state of a run: what a checkpoint holds beside its tensors, as typed values, and how its tensors are named.

1.  Every key of a checkpoint is here: those of its JSON are the fields of `RunState`, in `FORMAT`.
2.  "parameters/NAME" is a trained parameter, "VECTOR/NAME" its part of a vector of the rule and "average/NAME" of the
    average, all in the dtype of the parameter vector; "frozen/NAME" is a parameter that is not trained, and
    "buffers/NAME" a buffer, of `state_dict` or not, each in its own dtype. Complex ones are pairs of real numbers.
3.  Whatever is read and is not exactly as it was written raises `ValueError` with a sentence.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec
import torch
from torch import Tensor, nn

from distbelief.downpour.ledger_state import LedgerState
from distbelief.server.block import AVERAGE
from distbelief.server.layout import Layout

FORMAT = 3
PARAMETERS, FROZEN, BUFFERS = KINDS = ("parameters", "frozen", "buffers")
"""What a checkpoint holds of the module. A vector of a rule cannot have one of these names."""


@dataclass(frozen=True)
class Totals:
    """Sums over a run's life, resumed runs included."""

    updates: int = 0
    """Pushes that every shard used."""
    seconds: float = 0.0
    """From the first lease to the end of the last, pauses between a run and its resumption apart."""
    restarts: int = 0
    rejected: int = 0
    """Pushes that were not finite, or that every shard turned away."""
    staleness: list[int] = field(default_factory=list)
    """Histogram over all shards, without the zeros at its end."""
    stalest: int = 0
    fetched_bytes: int = 0
    pushed_bytes: int = 0

    def __post_init__(self) -> None:
        values = dataclasses.asdict(self)
        if not all(0 <= number < math.inf for number in [*values.pop("staleness"), *values.values()]):
            raise ValueError("a total is negative or not finite")


@dataclass(frozen=True)
class RunState:
    """A run at one instant, but for its tensors.

    Raises `ValueError` for numbers that no run can have.
    """

    seed: int
    data: str
    """The fingerprint of the first batch."""
    term: int
    """Which life of the run this is, from 1. A run that goes on from here is in the next one."""
    incarnations: tuple[int, ...]
    """How many processes each replica has had, over all lives."""
    trained: tuple[str, ...]
    """The trained parameters, by name, in the order of the vector."""
    method: LedgerState
    totals: Totals
    updates: int
    """Updates of the shards since the state of their rule began, for rules that count them."""
    examples: int
    """Examples in the updates of the shards, for schedules."""
    history: list[dict[str, int | float | None]]
    """One row an evaluation."""

    def __post_init__(self) -> None:
        if self.term < 1 or min(self.updates, self.examples, *self.incarnations) < 0:
            raise ValueError("a count of the run is too small")
        if not self.trained or len(set(self.trained)) < len(self.trained):
            raise ValueError("the names of the trained parameters are missing or not unique")

    def to_json(self) -> dict[str, Any]:
        """As JSON knows it, the format included."""
        content = dataclasses.asdict(self)
        return {"format": FORMAT, **content, "method": {"kind": "downpour", "state": content["method"]}}


def from_json(value: object) -> RunState:
    """The state that was written; raises `ValueError` where it is not exactly that."""
    match value:
        case {"format": number, "method": {"kind": "downpour", "state": state}, **content} if number == FORMAT:
            try:
                found = msgspec.convert({**content, "method": state}, RunState, str_keys=True)
            except (msgspec.ValidationError, TypeError) as error:
                raise ValueError(f"the state is not what was written: {error}") from error
            for account in (state["total"], *state["accounts"].values()):
                # Added to the format later.
                account.setdefault("poisoned", 0)
            if json.dumps(found.to_json(), sort_keys=True) != json.dumps(value, sort_keys=True):
                raise ValueError("the state holds more, or other kinds of numbers, than what was written")
            return found
    raise ValueError(f"the state is not of format {FORMAT}, or of no known method")


# Tensors


def key(kind: str, name: str) -> str:
    """What a tensor is called in a checkpoint."""
    return f"{kind}/{name}"


def of_kind(tensors: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """The tensors of one kind, by the names that the module has for them."""
    return {name.removeprefix(f"{kind}/"): tensor for name, tensor in tensors.items() if name.startswith(f"{kind}/")}


def check_tensors(state: RunState, tensors: Mapping[str, Tensor]) -> None:
    """Raise `ValueError` unless tensors are those of a run in this state."""
    found = of_kind(tensors, PARAMETERS)
    if found.keys() != set(state.trained):
        raise ValueError("its tensors are not those of the parameters that it says were trained")
    if found.keys() & of_kind(tensors, FROZEN).keys():
        raise ValueError("one of its parameters is both trained and not")


def vectors_like(layout: Layout, kept: Iterable[str]) -> dict[str, Tensor]:
    """Parameters and the vectors kept beside them by key, without contents, independent of where they are cut."""
    flat = torch.empty(layout.length, dtype=layout.dtype, device="meta")
    vectors = (PARAMETERS, *kept)
    return {key(vector, name): view for vector in vectors for name, view in layout.named(flat).items()}


def untrained(module: nn.Module) -> dict[str, Tensor]:
    """What a module has beside its trained parameters, by key."""
    frozen = {key(FROZEN, name): p.detach() for name, p in module.named_parameters() if not p.requires_grad}
    return frozen | {key(BUFFERS, name): buffer.detach() for name, buffer in module.named_buffers()}


def module_values(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parameters and buffers in a checkpoint, by the names that the module has for them."""
    return {name: tensor for kind in KINDS for name, tensor in of_kind(tensors, kind).items()}


def parameters_into_(vector: Tensor, layout: Layout, tensors: Mapping[str, Tensor], kind: str = PARAMETERS) -> None:
    """Copy the trained parameters of a checkpoint into a flat vector; what was not trained then stays as it is there.

    Not by way of the module, whose parameters may be of a narrower type than the vector. `kind`: another vector in
    their place.
    """
    for name, view in layout.named(vector).items():
        if (tensor := tensors.get(key(kind, name))) is not None:
            view.copy_(tensor)


def flat_state(
    layout: Layout, tensors: Mapping[str, Tensor], kept: Mapping[str, float | None], parameters: Tensor
) -> dict[str, Tensor]:
    """The vectors kept beside the parameters, gathered from a checkpoint.

    What it does not hold begins with the number that `kept` has for it; None: with the parameters, a flat vector.
    """
    flat = {
        name: parameters.to("cpu", copy=True)
        if fill is None
        else torch.full((layout.length,), fill, dtype=layout.dtype)
        for name, fill in kept.items()
    }
    for name, vector in flat.items():
        parameters_into_(vector, layout, tensors, name)
    return flat


class Changes(NamedTuple):
    """What is not as it was when a checkpoint was written."""

    fresh_state: list[str]
    """Vectors that the checkpoint does not hold: they begin anew."""
    newly_frozen: list[str]
    """Parameters that were trained and are not any more: they keep their values."""
    newly_trained: list[str]
    """Parameters that were not trained: the state of the rule begins anew for them."""

    @property
    def fresh(self) -> bool:
        """Whether any state of the rule begins anew."""
        return bool({*self.fresh_state} - {AVERAGE} or self.newly_trained)


def changes(
    trained_before: tuple[str, ...], tensors: Mapping[str, Tensor], layout: Layout, kept: Iterable[str]
) -> Changes:
    """What differs between a checkpoint and the run that goes on from it."""
    trained_now = [entry.name for entry in layout.entries]
    found = {name.partition("/")[0] for name in tensors}
    return Changes(
        sorted({*kept} - found),
        [name for name in trained_before if name not in trained_now],
        [name for name in trained_now if name not in trained_before],
    )
