"""Evaluation: the server's parameters, never a replica's drifted copy, over data that is not trained on."""

import numpy as np
import torch
from torch import nn

from distbelief.data import Rows
from distbelief.task import Task

_BATCH = 512


@torch.inference_mode()
def evaluate(task: Task, module: nn.Module, rows: Rows) -> dict[str, float]:
    """The loss and each metric of a task: means over all examples, where a batch weighs what it weighs in training."""
    sums = dict.fromkeys(task.metrics, 0.0)
    loss_sum = loss_weight = 0.0
    module.eval()
    for start in range(0, len(rows), _BATCH):
        size = min(_BATCH, len(rows) - start)
        batch = rows.batch(np.arange(start, start + size))
        prediction, loss, weight = task.forward(module, batch)
        loss_sum += loss.item() * (size if weight is None else 1)
        loss_weight += size if weight is None else float(weight)
        for name, metric in task.metrics.items():
            value = metric.fn(module, batch) if task.loss is None else metric.fn(prediction, batch[1])
            sums[name] += float(value) * size
    return {"loss": loss_sum / loss_weight, **{name: total / len(rows) for name, total in sums.items()}}
