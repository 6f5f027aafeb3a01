"""A state of a run, as one is written."""

from dataclasses import replace
from typing import Any

from distbelief.allocation import Account
from distbelief.downpour.ledger_state import LedgerState, Portion
from distbelief.run.state import RunState, Totals

LEDGER = LedgerState(25, 10, 5, 1, 2, 1, (Portion(1, 1, 2),), Account(used=30, dropped=5), {1: Account(5, 5)})


def state(**changes: Any) -> RunState:
    """Of a run that trains one parameter, "w"."""
    given = RunState(
        seed=-3,
        data="9f",
        term=2,
        incarnations=(3, 1),
        trained=("w",),
        method=LEDGER,
        totals=Totals(7, 1.5, 1, 2, [3, 0, 4], 2, 100, 90),
        updates=7,
        examples=70,
        history=[{"epoch": 0.5, "examples": 12, "updates": 3, "seconds": 0.1, "loss": 1.0, "auc": None}],
    )
    return replace(given, **changes)
