"""After a divergence: the checkpoints from before it are gone on with, those from after it are set aside.

What had diverged by a checkpoint diverges again from there at any learning rate. Parameters are finite until the end:
it is seen by the loss on a batch.
"""

import math
from pathlib import Path

import numpy as np
import torch
from torch import nn

from distbelief.run import checkpoint
from distbelief.run.prepare import Prepared
from distbelief.run.state import module_values
from distbelief.task.data import seeded
from distbelief.task.tensors import put_

_FACTOR = 100.0
"""How many times the loss at the run's beginning is more than any learning comes to."""


def set_aside(prepared: Prepared, checkpoints: Path) -> str:
    """Set aside what was written after the run had begun to diverge; returns where `resume` goes on, in a sentence."""
    module = prepared.origin.build(prepared.seed)
    limit = _FACTOR * max(1.0, abs(_loss(prepared, module)))
    moved = 0
    while (found := checkpoint.newest(checkpoints)[0]) is not None:
        finite = all(bool(torch.isfinite(t).all()) for t in found.tensors.values() if t.is_floating_point())
        put_(module, module_values(found.tensors))
        if finite and _loss(prepared, module) <= limit:
            break
        checkpoint.rename(checkpoints, found.examples, "diverged-")
        moved += 1
    where = "begins anew" if found is None else f"goes on after {found.examples:,} examples"
    others = f"; what was written after it had begun is in {checkpoints}/diverged-…" if moved else ""
    return f"resume {where}, from before the divergence, and needs a smaller lr{others}"


def _loss(prepared: Prepared, module: nn.Module) -> float:
    """The mean loss on a few examples; infinite where it is no number."""
    batch = prepared.rows.batch(np.arange(min(len(prepared.rows), prepared.batch_size)))
    with seeded(prepared.seed):
        found = prepared.task.forward(module.eval(), batch)
    loss = found.loss.item() / (1.0 if found.weight is None else float(found.weight))
    return loss if math.isfinite(loss) else math.inf
