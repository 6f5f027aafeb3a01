"""Training speed, side by side: `python -m benchmarks.throughput [--quick] [--repeats N]`.

Our replicas have one thread each. Our seconds run from the first lease to the last push, so the first, slow steps of
fresh processes count; the rivals warm up first. Nobody evaluates. Where there is a GPU, it gets a row of its own.
"""

import json
import subprocess
import sysconfig
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

import distbelief as db
from benchmarks.measure import Comparison, interleave, machine, options, report
from benchmarks.networks import NETWORKS, RATE, Network
from benchmarks.rivals import train_ddp, train_plain
from distbelief.engines.worker.worker_process import ENVIRONMENT

REPLICAS = 2
COLD_START_S = 6.0
_LOOK_S = 0.01
"""How often a log is looked at: what a cold start is overrated by, at most."""


class Bars(NamedTuple):
    """What our speed is to be, as a multiple of each rival's."""

    alone: float
    """Against as many plain processes as we have replicas, each with the machine to itself."""
    ddp: float
    cores: float
    """Against one plain process on all cores."""


def train_ours(
    network: Network,
    *,
    replicas: int,
    seconds: float,
    admission: db.Asynchronous | db.Buffered,
    device: str = "cpu",
) -> float:
    """Updates a second, or gradients a second where several make an update: batches, either way."""
    method = db.Downpour(
        replicas=replicas, batch_size=network.batch_size, optimizer=db.Adagrad(RATE), admission=admission
    )
    with tempfile.TemporaryDirectory() as directory:
        run = db.train(
            network.task(),
            method,
            engine=db.Local(device=device, threads=1),
            until=db.Until(seconds=seconds),
            directory=directory,
            progress=False,
        )
    updates: float = run.summary["updates"] / run.summary["seconds"]
    return updates


def compare(network: Network, bars: Bars, *, seconds: float, repeats: int) -> list[Comparison]:
    """Two replicas against every rival, in examples a second."""
    cores = machine()["cores"]
    ours = partial(train_ours, network, replicas=REPLICAS, seconds=seconds)
    steps = interleave(
        {
            "ours": lambda: ours(admission=db.Asynchronous()),
            "synchronous": lambda: ours(admission=db.Buffered(REPLICAS)),
            "alone": lambda: REPLICAS * train_plain(network, threads=1, seconds=seconds),
            "kept": lambda: REPLICAS * train_plain(network, threads=1, seconds=seconds, environment=ENVIRONMENT),
            "ddp": lambda: REPLICAS * train_ddp(network, processes=REPLICAS, seconds=seconds),
            "cores": lambda: train_plain(network, threads=cores, seconds=seconds),
        },
        repeats,
    )
    speeds = {name: [network.batch_size * s for s in arm] for name, arm in steps.items()}
    rivals = {
        "alone": (f"{REPLICAS} × one plain process on one thread", bars.alone),
        "kept": ("the same, with our replicas' environment", None),
        "ddp": (f"DDP, gloo, {REPLICAS} processes", bars.ddp),
        "cores": (f"one plain process on {cores} threads", bars.cores),
        "synchronous": (f"our own synchronous arm, Buffered({REPLICAS})", None),
    }
    return [
        Comparison(
            what=f"{network.name}, batch {network.batch_size}, {REPLICAS} replicas",
            unit="examples/s",
            ours=speeds["ours"],
            rival=rival,
            theirs=speeds[name],
            bar=bar,
        )
        for name, (rival, bar) in rivals.items()
    ]


def compare_one(network: Network, bar: float, *, device: str, seconds: float, repeats: int) -> Comparison:
    """What a step costs beside the arithmetic: of a model so small that nothing else is left, or with a GPU."""
    steps = interleave(
        {
            "ours": lambda: train_ours(
                network, replicas=1, seconds=seconds, admission=db.Asynchronous(), device=device
            ),
            "alone": lambda: train_plain(network, threads=1, seconds=seconds, device=device),
        },
        repeats,
    )
    return Comparison(
        what=f"{network.name}, batch {network.batch_size}, one replica on {device}",
        unit="steps/s",
        ours=steps["ours"],
        rival="one plain process on one thread",
        theirs=steps["alone"],
        bar=bar,
    )


def cold_start() -> float:
    """Seconds from the command to the last push of a run of one portion, which its log and its summary tell."""
    command = [f"{sysconfig.get_path('scripts')}/distbelief", "train", "digits", "--quiet", "--examples", "32"]
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "events.jsonl"
        began = time.perf_counter()
        process = subprocess.Popen([*command, "--directory", directory], stdout=subprocess.DEVNULL)
        while not (stopped := [e for e in _events(log) if e["event"] == "stopped"]) and process.poll() is None:
            time.sleep(_LOOK_S)
        # Its own clock began with the first lease.
        first_lease = time.perf_counter() - stopped[0]["seconds"]
        process.wait()
        summary = json.loads((Path(directory) / "summary.json").read_text())
    seconds: float = first_lease - began + summary["seconds"]
    return seconds


def _events(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def main() -> None:
    """Measure everything and report."""
    quick, repeats = options(__doc__, 5)
    facts = machine()
    found = [
        *compare(NETWORKS["speech-paper"], Bars(0.88, 1.2, 1.1), seconds=4 if quick else 8, repeats=repeats),
        *compare(NETWORKS["1024-wide"], Bars(0.80, 1.6, 1.5), seconds=2 if quick else 4, repeats=repeats),
        compare_one(NETWORKS["digits"], 0.8, device="cpu", seconds=1 if quick else 3, repeats=repeats),
        *(
            compare_one(NETWORKS["speech-paper-1024"], 0.9, device="cuda:0", seconds=4 if quick else 8, repeats=repeats)
            for _ in range(min(1, torch.cuda.device_count()))
        ),
        Comparison(
            what="distbelief train digits: from the command to the first portion's pushes",
            unit="s",
            ours=[cold_start() for _ in range(repeats)],
            rival="limit",
            theirs=[COLD_START_S],
            bar=1.0,
            less_is_better=True,
        ),
    ]
    report(
        "throughput",
        "Training: the ratio is our speed to theirs (random data and labels but for digits; Adagrad, float32)",
        facts,
        found,
        quick=quick,
    )


if __name__ == "__main__":
    main()
