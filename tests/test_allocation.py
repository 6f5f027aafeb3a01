"""What the shards know of a dead replica comes to one account."""

import pytest

from distbelief.allocation import Account, last_push
from distbelief.ports import PushRecord, Verdict, Work

WORK = Work(1, 0, 4, 40)


def record(sequence: int, verdict: Verdict = Verdict.APPLIED, *, whole: bool = True) -> PushRecord:
    return PushRecord(sequence, WORK._replace(start=sequence), verdict, whole)


@pytest.mark.parametrize(
    ("records", "sequence", "used", "partial"),
    [
        ([record(3), record(3), record(3)], 3, True, False),
        ([record(3), record(2), record(3)], 3, True, True),
        ([record(2), record(2), record(3)], 3, True, True),
        ([record(1), None, None], 1, True, True),
        ([record(3), record(3, whole=False), record(3)], 3, True, True),
        ([record(3), record(2, whole=False), record(3)], 3, True, True),
        ([record(3, Verdict.LATE), record(3, Verdict.LATE)], 3, False, False),
        ([record(3, Verdict.LATE), record(3, Verdict.HELD)], 3, True, False),
        ([record(3, Verdict.LATE), record(2)], 3, False, True),
    ],
    ids=[
        "everywhere", "not yet everywhere", "only at one", "the very first", "torn at one", "an old tear",
        "turned away", "turned away at one", "turned away where it came",
    ],
)  # fmt: skip
def test_the_last_push_is_the_newest_that_any_shard_knows(
    records: list[PushRecord | None], sequence: int, used: bool, partial: bool
) -> None:
    found = last_push(records)
    assert found is not None
    assert found.record.sequence == found.record.work.start == sequence
    assert (found.used, found.partial) == (used, partial)


def test_a_replica_that_no_shard_knows_pushed_nothing() -> None:
    assert last_push([None, None]) is None


def test_accounts_add_up_part_by_part() -> None:
    both = Account(used=1, refused=2, dropped=3, partial=4) + Account(used=10, refused=20, dropped=30, partial=40)
    assert both == Account(11, 22, 33, 44)
    assert both.total == 110
