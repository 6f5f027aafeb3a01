"""What a ledger writes down, and what cannot be the state of one."""

from dataclasses import replace
from typing import Any

import pytest

from distbelief.allocation import Account
from distbelief.downpour.ledger import Ledger
from distbelief.downpour.ledger_state import LedgerState, Portion
from distbelief.errors import InvariantViolated
from distbelief.ports import Outcome, Verdict


def used(ledger: Ledger, holder: int = 0, *, batches: int | None = None) -> int:
    """Take a lease and use its batches, or the first few; returns its number."""
    lease = ledger.lease(holder).lease
    assert lease is not None
    stop = lease.stop if batches is None else lease.start + batches
    ledger.done(lease.number, [Outcome(lease.start, stop, Verdict.APPLIED)] if stop > lease.start else [])
    return lease.number


def halfway() -> Ledger:
    """A ledger in its second epoch of 25 examples, with a portion to be leased again."""
    ledger = Ledger(examples=25, batch_size=10, epochs=4)
    used(ledger)
    used(ledger)
    used(ledger)
    used(ledger, batches=0)
    return ledger


def test_a_ledger_goes_on_where_another_stood() -> None:
    ledger, other = halfway(), Ledger(examples=25, batch_size=10, epochs=4)
    other.restore_(ledger.state())
    assert other.state() == ledger.state()
    while not ledger.finished:
        assert used(other) == used(ledger)
    assert other.finished
    other.check()
    assert other.total == ledger.total == Account(used=100)


def test_numbers_of_leases_go_on() -> None:
    ledger, other = halfway(), Ledger(examples=25, batch_size=10, epochs=4)
    other.restore_(ledger.state())
    assert used(other) == ledger.state().next_lease


def test_a_state_is_a_copy() -> None:
    ledger = halfway()
    state = ledger.state()
    before = replace(state.total)
    used(ledger)
    assert state.total == before


def test_what_is_leased_cannot_be_written_down() -> None:
    ledger = halfway()
    ledger.lease(0)
    with pytest.raises(InvariantViolated, match="leases outstanding"):
        ledger.state()


STATE = LedgerState(25, 10, 5, 1, 2, 1, (Portion(1, 1, 2),), Account(used=30, dropped=5), {1: Account(5, 5)})


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"examples": 0}, "too small"),
        ({"batch_size": 0}, "too small"),
        ({"next_lease": 0}, "too small"),
        ({"next_batch": -1}, "too small"),
        ({"total": Account(used=36, dropped=-1)}, "too small"),
        ({"next_batch": 3}, "cannot be at batch 3 of epoch 1"),
        ({"next_epoch": 1 << 60}, "cannot be at batch"),
        ({"epochs_ended": 2}, "cannot be at batch"),
        ({"accounts": {0: Account(10)}}, "cannot be at batch"),
        ({"released": (Portion(1, 2, 2),)}, "cannot have released"),
        ({"released": (Portion(1, 1, 4),)}, "cannot have released"),
        ({"released": ()}, "does not add up in epoch 1"),
        ({"total": Account(used=30)}, "not the sum of its epochs"),
    ],
)
def test_what_no_ledger_can_be(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        replace(STATE, **wrong)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 10])
def test_a_ledger_goes_on_in_batches_of_another_size(batch_size: int) -> None:
    """It stands at example 20 of 25, and the examples from 10 to 20 are to be leased again."""
    state = halfway().state().recut(batch_size)
    assert state.batch_size == batch_size
    other = Ledger(examples=25, batch_size=batch_size, epochs=4)
    other.restore_(state)
    other.check()
    while not other.finished:
        used(other)
    other.check()
    assert other.total == Account(used=100)


@pytest.mark.parametrize("batch_size", [3, 4, 20, 25])
def test_a_batch_is_never_used_in_parts(batch_size: int) -> None:
    with pytest.raises(ValueError, match=r"inside an epoch .* in batches of 10; choose that again, or .* divides 10$"):
        halfway().state().recut(batch_size)


def test_between_epochs_any_size_will_do() -> None:
    ledger = Ledger(examples=25, batch_size=10, epochs=2)
    for _ in range(3):
        used(ledger)
    for batch_size in (1, 7, 25, 99):
        other = Ledger(examples=25, batch_size=batch_size, epochs=2)
        other.restore_(ledger.state().recut(batch_size))
        while not other.finished:
            used(other)
        assert other.total == Account(used=50)
