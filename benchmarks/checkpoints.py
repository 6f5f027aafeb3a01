"""What checkpoints cost a run that keeps all cores busy: `python -m benchmarks.checkpoints [--quick] [--repeats N]`.

The speed of a run is taken from its log, without the first seconds, in which checkpoints follow each other faster.
Files go where runs do. Nobody evaluates.
"""

import json
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

import distbelief as db
from benchmarks.measure import Comparison, machine, options, report
from benchmarks.networks import NETWORKS, RATE, Network
from distbelief.engines.mapped_shards import MappedShards
from distbelief.engines.run_record import controller_of, flat_at_start
from distbelief.engines.shard_set import Shards, shard_specs
from distbelief.run import checkpoint
from distbelief.run.checkpoint import Draft, image_of
from distbelief.run.prepare import Asked, prepare
from distbelief.run.state import Totals

REPLICAS = 2
EVERY_S = 10.0
BAR = 0.97
NEVER_S = 1e6
RUNS = Path("runs")


class Trained(NamedTuple):
    """What the log of a run tells."""

    examples_per_second: float
    captures_s: list[float]
    """How long each checkpoint held pushes up, at most."""


def method(network: Network) -> db.Downpour:
    """How the network is trained."""
    return db.Downpour(replicas=REPLICAS, batch_size=network.batch_size, optimizer=db.Adagrad(RATE))


def train(network: Network, *, every_s: float, seconds: float) -> Trained:
    """Train for so many seconds, of which the first `EVERY_S` do not count."""
    with tempfile.TemporaryDirectory(dir=RUNS) as directory:
        db.train(
            network.task(),
            method(network),
            engine=db.Local(threads=1),
            until=db.Until(seconds=seconds),
            checkpoint_every=db.Every(seconds=every_s),
            directory=directory,
            progress=False,
        )
        events = [json.loads(line) for line in (Path(directory) / "events.jsonl").read_text().splitlines()]
    counted = [e for e in events if e["seconds"] >= EVERY_S]
    first, *_, last = [e for e in counted if e["event"] == "progress"]
    # The last checkpoint is written when nobody trains any more.
    written = [e for e in counted if e["event"] == "checkpoint"][:-1]
    speed = (last["examples"] - first["examples"]) / (last["seconds"] - first["seconds"])
    return Trained(speed, [e["capture_s"] for e in written])


def compare(network: Network, *, seconds: float, repeats: int) -> list[Comparison]:
    """The same run with checkpoints and without, by turns."""
    runs: dict[float, list[Trained]] = {EVERY_S: [], NEVER_S: []}
    for turn in range(repeats):
        for every_s in list(runs)[:: 1 if turn % 2 == 0 else -1]:
            runs[every_s].append(train(network, every_s=every_s, seconds=seconds))
    captures = [run.captures_s for run in runs[EVERY_S]]
    counts = sorted({len(run) for run in captures})
    what = f"{network.name}, batch {network.batch_size}, {REPLICAS} replicas"
    return [
        Comparison(
            what=f"{what}, a checkpoint every {EVERY_S:.0f} s",
            unit="examples/s",
            ours=[run.examples_per_second for run in runs[EVERY_S]],
            rival="without checkpoints",
            theirs=[run.examples_per_second for run in runs[NEVER_S]],
            bar=BAR,
        ),
        Comparison(what="longest capture of a run: holds pushes up", unit="ms", ours=[1e3 * max(s) for s in captures]),
        Comparison(
            what=f"all captures of a run, {' or '.join(map(str, counts))} of them",
            unit="ms",
            ours=[1e3 * sum(s) for s in captures],
        ),
    ]


def _core_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _cost(action: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of a core, and seconds."""
    core, began = _core_seconds(), time.perf_counter()
    action()
    return _core_seconds() - core, time.perf_counter() - began


def alone(network: Network, repeats: int) -> list[Comparison]:
    """A checkpoint's steps, while nobody trains."""
    prepared = prepare(network.task(), method(network), Asked(until=db.Until(epochs=1)), replicas=lambda: REPLICAS)
    mapped = MappedShards(shard_specs(prepared))
    flat = flat_at_start(prepared, torch.device("cpu"))
    shards = Shards(prepared, flat.vector, mapped.shards)
    image = image_of(flat, prepared.method.kept)
    state = prepared.state(
        term=1,
        method=controller_of(prepared).allocator.state(),
        incarnations=[],
        totals=Totals(),
        updates=0,
        examples=0,
        history=[],
    )
    captures = shards.captures(image.tensors)
    copied, written = [], []
    with tempfile.TemporaryDirectory(dir=RUNS) as directory:
        for number in range(repeats):
            copied.append(_cost(lambda: shards.execute_each(captures)))
            draft = Draft(number, image, state)
            written.append(_cost(lambda draft=draft: checkpoint.write(Path(directory), draft)))  # type: ignore[misc]
    mapped.close()
    core = [a[0] + b[0] for a, b in zip(copied, written, strict=True)]
    return [
        Comparison(
            what="a checkpoint",
            unit="core-seconds",
            ours=core,
            rival=f"{1 - BAR:.0%} of {REPLICAS} cores",
            theirs=[(1 - BAR) * REPLICAS * EVERY_S],
            bar=1.0,
            less_is_better=True,
        ),
        Comparison(what="its copy", unit="core-seconds", ours=[core for core, _ in copied]),
        Comparison(what="its checksum and write", unit="core-seconds", ours=[core for core, _ in written]),
        Comparison(what="its bytes", unit="MB", ours=[image.nbytes / 1e6]),
        Comparison(what="checksum and write", unit="MB/s", ours=[image.nbytes / 1e6 / wall for _, wall in written]),
    ]


def main() -> None:
    """Measure everything and report."""
    RUNS.mkdir(exist_ok=True)
    quick, repeats = options(__doc__, 5)
    facts = machine()
    network = NETWORKS["speech-paper"]
    # First, while no page is dirty.
    steps = alone(network, max(5, repeats))
    runs = compare(network, seconds=EVERY_S * (2.5 if quick else 5.5), repeats=repeats)
    report("checkpoints", "Checkpoints: the ratio is our speed to theirs", facts, [*runs, *steps], quick=quick)


if __name__ == "__main__":
    main()
