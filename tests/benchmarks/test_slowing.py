import math
import os
import statistics
import time
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import distbelief as db
from benchmarks.slowing import Law, SlowLoss, slowed, take_seat

X, Y = torch.ones(8, 2), torch.zeros(8, 2)


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    naps: list[float] = []
    monkeypatch.setattr(time, "sleep", naps.append)
    return naps


def factors(law: Law, seat: int, count: int = 1000) -> list[float]:
    return list(islice(law.factors(seat), count))


def test_only_the_worker_on_seat_0_is_slow() -> None:
    law = Law(plain_s=0.1, slow=5)
    assert factors(law, 0, 3) == [5, 5, 5]
    assert factors(law, 1, 3) == [1, 1, 1]


def test_of_paced_workers_the_slow_one_is_slower_by_the_same_factor() -> None:
    law = Law(plain_s=0.1, slow=5, pace=4)
    assert factors(law, 0, 1) == [20]
    assert factors(law, 3, 1) == [4]


def test_lognormal_factors_have_their_median_and_deviation() -> None:
    logarithms = [math.log(factor) for factor in factors(Law(plain_s=0.1, sigma=1, pace=1000), 0, 4000)]
    assert statistics.median(logarithms) == pytest.approx(math.log(1000), abs=0.1)
    assert statistics.stdev(logarithms) == pytest.approx(1, abs=0.05)


def test_no_step_is_faster_than_a_plain_one() -> None:
    drawn = factors(Law(plain_s=0.1, sigma=1), 0)
    assert min(drawn) == 1
    assert 0.4 < drawn.count(1) / len(drawn) < 0.6


def test_chance_is_the_seeds_and_the_seats() -> None:
    law, other = Law(plain_s=0.1, sigma=1), Law(plain_s=0.1, sigma=1, seed=1)
    assert factors(law, 0) == factors(law, 0)
    assert factors(law, 0) != factors(law, 1)
    assert factors(law, 0) != factors(other, 0)


def test_seats_are_taken_in_order_and_again_when_they_are_free(tmp_path: Path) -> None:
    first, second = take_seat(tmp_path), take_seat(tmp_path)
    assert (first.number, second.number) == (0, 1)
    os.close(first.fd)
    assert take_seat(tmp_path).number == 0


def test_a_step_sleeps_for_what_its_factor_leaves(tmp_path: Path, slept: list[float]) -> None:
    slow = SlowLoss(nn.MSELoss(), Law(plain_s=0.1, slow=5), tmp_path, spared=0)
    fast = SlowLoss(nn.MSELoss(), Law(plain_s=0.1, slow=5), tmp_path, spared=0)
    assert float(slow(X, Y)) == 1.0
    fast(X, Y)
    slow(X, Y)
    assert slept == pytest.approx([0.4, 0.0, 0.4])


def test_evaluations_and_the_spared_process_neither_sleep_nor_take_a_seat(tmp_path: Path, slept: list[float]) -> None:
    law = Law(plain_s=0.1, slow=5)
    SlowLoss(nn.MSELoss(), law, tmp_path, spared=os.getpid())(X, Y)
    with torch.inference_mode():
        SlowLoss(nn.MSELoss(), law, tmp_path, spared=0)(X, Y)
    assert slept == []
    assert list(tmp_path.iterdir()) == []


def test_a_slowed_task_differs_in_its_loss_alone(tmp_path: Path) -> None:
    def model() -> nn.Module:
        return nn.Linear(2, 2)

    def right(prediction: Tensor, target: Tensor) -> float:
        return 1.0

    task = db.Task(model, nn.MSELoss(), train=(X, Y), validation=(X, Y), metrics={"right": right})
    slow = slowed(task, Law(plain_s=0.1), tmp_path)
    assert isinstance(slow.loss, SlowLoss)
    assert {**vars(slow), "loss": None} == {**vars(task), "loss": None}
    assert slowed(task, None, tmp_path) is task
