"""Time to a fixed accuracy against the number of replicas, as in the paper's figure 5, in simulated time.

`python -m benchmarks.figure5` takes about an hour and a half on two cores, and goes on where it was if it is interrupted. It
writes `benchmarks/results/figure5.json` and `docs/figure5.png`. Arms and settings are those of `asynchrony.py`.
"""

import argparse
import json
import math
import statistics
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.asynchrony import ARMS, LIMIT, ONE, SEEDS, SPEEDS, TARGET, Study, seconds
from benchmarks.measure import DOCS, RESULTS, machine, table

REPLICAS = (5, 20, 60, 200)
CELLS = [(ONE, 1, speeds) for speeds in SPEEDS] + [
    (arm, replicas, speeds) for replicas in REPLICAS for speeds in SPEEDS for arm in ARMS
]


def median(cell: dict[str, Any]) -> float:
    """Seconds to the target; infinite where more than half of the runs are censored."""
    return statistics.median(seconds(run) for run in cell["runs"])
