"""How the speech tasks learn: each is trained with two replicas; accuracy is drawn by time, loss by examples.

`python -m benchmarks.curves` writes `docs/curves.png` and `benchmarks/results/curves.json`.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

import distbelief as db
from benchmarks.measure import RESULTS, machine

_PICTURE = Path(__file__).parent.parent / "docs" / "curves.png"


def learn(task: db.Task, seconds: float, every_s: float) -> dict[str, Any]:
    """Train for some seconds with two replicas, and return the summary."""
    with tempfile.TemporaryDirectory() as folder:
        run = db.train(
            task,
            until=db.Until(seconds=seconds),
            evaluate_every=db.Every(seconds=every_s),
            directory=Path(folder) / "run",
        )
        return run.summary


def draw(summaries: dict[str, dict[str, Any]]) -> None:
    """One row a task: accuracy against seconds, and loss against examples, both on the validation set."""
    figure, rows = plt.subplots(len(summaries), 2, figsize=(9, 3.2 * len(summaries)), squeeze=False)
    for (name, summary), (left, right) in zip(summaries.items(), rows, strict=True):
        history = summary["history"]
        accuracies = [100 * row["accuracy"] for row in history]
        left.plot([row["seconds"] for row in history], accuracies, marker="o", markersize=3)
        left.set_xlabel("seconds")
        left.set_ylabel("validation accuracy, %")
        left.set_title(f"{name}: {summary['parameters']:,} parameters, {summary['replicas']} replicas", fontsize=10)
        losses = [row["loss"] for row in history]
        right.plot([row["examples"] / 1000 for row in history], losses, marker="o", markersize=3, color="tab:red")
        right.set_xlabel("thousand examples used")
        right.set_ylabel("validation loss")
        right.set_title(f"test accuracy at the end {100 * summary['metrics']['test_accuracy']:.1f} %", fontsize=10)
        for axis in (left, right):
            axis.grid(alpha=0.3)
    figure.tight_layout()
    _PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(_PICTURE, dpi=110)


def main() -> None:
    """Train, draw, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="for speech; speech-paper takes four times as long")
    seconds = parser.parse_args().seconds
    summaries = {
        "speech": learn(db.tasks.speech(), seconds, seconds / 12),
        "speech-paper": learn(db.tasks.speech_paper(), 4 * seconds, seconds / 2),
    }
    draw(summaries)
    (RESULTS / "curves.json").write_text(json.dumps({"machine": machine(), **summaries}, indent=2) + "\n")


if __name__ == "__main__":
    main()
