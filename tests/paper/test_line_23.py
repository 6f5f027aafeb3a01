"""Line 23. Figure 5: time to a fixed accuracy against the number of machines: more are faster, to a point."""

from pathlib import Path

import distbelief as db
from tests import problems

TARGET = 0.9


def seconds_to_target(folder: Path, replicas: int, seed: int) -> float:
    run = db.train(
        problems.task(validation=problems.points()),
        db.Downpour(replicas=replicas, batch_size=8, optimizer=db.Adagrad(0.01), warmstart=160),
        engine=db.Simulated(compute=db.Lognormal(0.1, 0.3)),
        until=db.Until(target={"accuracy": TARGET}, epochs=100),
        evaluate_every=db.Every(examples=80),
        directory=folder / f"{replicas}-{seed}",
        seed=seed,
        progress=False,
    )
    assert run.summary["stopped_by"] == "target"
    return float(run.summary["seconds"])


def test_time_to_a_fixed_accuracy_falls_with_the_number_of_replicas(tmp_path: Path) -> None:
    """The warm start is in every clock. Three seeds; the slowest of more replicas beats the fastest of fewer."""
    seconds = {n: [seconds_to_target(tmp_path, n, seed) for seed in range(3)] for n in (1, 4, 16)}
    assert max(seconds[4]) < min(seconds[1])
    assert max(seconds[16]) < min(seconds[4])
    warm = 160 / 8 * 0.1
    assert min(seconds[16]) > 0.8 * warm
