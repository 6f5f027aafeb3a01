"""What bf16 costs and brings: `python -m benchmarks.precision [--quick] [--repeats N]`.

Speed: the paper's speech network in bf16 and in float32, on this machine's CPU as it is. Accuracy: the `speech` task,
after the same examples in the same order by one replica. Where the CPU has no instructions for bf16, what they would
compute is emulated there: operands and results of every product are rounded to bf16, sums are kept in float32.
"""

import copy
import tempfile
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import distbelief as db
from benchmarks.measure import Comparison, interleave, machine, options, report
from benchmarks.networks import NETWORKS, RATE
from distbelief.task.gradients import CPU, Precision, emulated

EXAMPLES = 600_000
POINTS = 0.5
"""Percentage points of accuracy that bf16 may cost."""


def rounded(x: Tensor) -> Tensor:
    """The nearest bf16 numbers, as float32."""
    return x.bfloat16().float()


class RoundedProduct(torch.autograd.Function):
    """x · wᵀ + b with the rounding of bf16 hardware, forwards and backwards."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """As autocast: operands are rounded, the product is summed in float32, the result is rounded."""
        x, weight = rounded(x), rounded(weight)
        ctx.save_for_backward(x, weight)
        return rounded(nn.functional.linear(x, weight, rounded(bias)))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gradient arrives in bf16; what is given back is rounded once more."""
        x, weight = ctx.saved_tensors
        gradient = rounded(gradients[0])
        return rounded(gradient @ weight), rounded(gradient.T @ x), rounded(gradient.sum(0))


class RoundedLinear(nn.Linear):
    """A linear layer that computes in training as bf16 hardware would; evaluations are in float32."""

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs) → (batch, outputs)."""
        if not self.training:
            return super().forward(x)
        product: Tensor = RoundedProduct.apply(x, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return product


def with_rounding(task: db.Task) -> db.Task:
    """The same task, its linear layers' arithmetic that of bf16 hardware."""
    module = task.build(seed=0)
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            layer.__class__ = RoundedLinear
    rounding = copy.copy(task)
    rounding.model = module
    return rounding


def speed(precision: Precision | None, seconds: float) -> float:
    """Examples a second of two replicas."""
    network = NETWORKS["speech-paper"]
    run = _train(
        network.task(),
        db.Downpour(replicas=2, batch_size=network.batch_size, optimizer=db.Adagrad(RATE)),
        db.Until(seconds=seconds),
        precision,
    )
    examples: float = run.summary["examples_per_second"]
    return examples


def accuracy(examples: int, precision: Precision | None) -> float:
    """Test accuracy of `speech` in per cent, after so many examples by one replica."""
    task = db.tasks.speech()
    assert task.suggested_method is not None
    method = replace(task.suggested_method, replicas=1)
    if emulated(CPU, precision):
        task, precision = with_rounding(task), None
    run = _train(task, method, db.Until(examples=examples), precision)
    return float(100 * run.metrics["test_accuracy"])


def _train(task: db.Task, method: db.Downpour, until: db.Until, precision: Precision | None) -> db.Run:
    with tempfile.TemporaryDirectory() as directory:
        return db.train(
            task,
            method,
            engine=db.Local(device="cpu", threads=1),
            until=until,
            evaluate_every=db.Every(seconds=1e6),
            directory=directory,
            precision=precision,
            progress=False,
        )


def main() -> None:
    """Measure and report."""
    quick, repeats = options(__doc__, 3)
    facts = machine() | {"bf16 instructions": not emulated(CPU, "bf16")}
    examples = EXAMPLES // 10 if quick else EXAMPLES
    exact = accuracy(examples, None)
    coarse = accuracy(examples, "bf16")
    seconds = 4 if quick else 20
    speeds = interleave({"bf16": lambda: speed("bf16", seconds), "float32": lambda: speed(None, seconds)}, repeats)
    found = [
        Comparison(
            what="speech-paper, batch 128, 2 replicas: bf16",
            unit="examples/s",
            ours=speeds["bf16"],
            rival="float32",
            theirs=speeds["float32"],
        ),
        Comparison(
            what=f"speech, test accuracy after {examples:,} examples: bf16",
            unit="%",
            ours=[coarse],
            rival=f"float32 less {POINTS} points",
            theirs=[exact - POINTS],
            bar=1.0,
        ),
    ]
    report("precision", "bf16 against float32: the ratio is bf16's figure to the other", facts, found, quick=quick)


if __name__ == "__main__":
    main()
