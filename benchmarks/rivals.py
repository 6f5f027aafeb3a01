"""What a user would pick instead: a plain torch loop, or DistributedDataParallel. Each runs in fresh processes.

Started as `python -m benchmarks.rivals NETWORK …`, this trains, and prints its speed as JSON.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.networks import NETWORKS, RATE, Network

_TIMEOUT_S = 120


def train_plain(network: Network, *, threads: int, seconds: float, environment: Mapping[str, str] = {}) -> float:
    """Steps a second of one torch process."""
    return _train(network, 1, threads, seconds, environment)


def train_ddp(network: Network, *, processes: int, seconds: float) -> float:
    """Steps a second of DistributedDataParallel over gloo, one thread a process; a step is a batch of every process."""
    return _train(network, processes, 1, seconds, {"GLOO_SOCKET_IFNAME": "lo"})


def _train(network: Network, ranks: int, threads: int, seconds: float, environment: Mapping[str, str]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        shared = [f"--threads={threads}", f"--seconds={seconds}", f"--ranks={ranks}", f"--store={folder}/store"]
        started = [
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.rivals", network.name, *shared, f"--rank={rank}"],
                env={**os.environ, "OMP_NUM_THREADS": str(threads), **environment},
                stdout=subprocess.PIPE,
            )
            for rank in range(ranks)
        ]
        try:
            speeds = [json.loads(p.communicate(timeout=seconds + _TIMEOUT_S)[0])["steps_per_second"] for p in started]
        finally:
            for process in started:
                process.kill()
                process.wait()
    return float(min(speeds))


def _steps(network: Network, wrap: Callable[[nn.Module], nn.Module], rank: int, ranks: int) -> Iterator[None]:
    """The plain loop: one step at a time, epoch after epoch, on this rank's share of the batches."""
    task = network.task()
    assert task.loss is not None
    inputs, targets = task.train
    model = wrap(task.build(seed=0).train())
    # The rule of our shards, in the fastest form that torch has.
    rule = torch.optim.Adagrad(model.parameters(), lr=RATE, eps=0, initial_accumulator_value=2**-126, fused=True)
    while True:
        for indices in torch.randperm(len(inputs)).split(network.batch_size)[rank::ranks]:
            rule.zero_grad(set_to_none=True)
            loss = task.loss(model(inputs.index_select(0, indices)), targets.index_select(0, indices))
            loss.backward()
            rule.step()
            loss.item()
            yield


def _speed(steps: Iterator[None], warm_up: int, seconds: float, agree: Callable[[int], int]) -> float:
    """Steps a second over about so many seconds, after a warm-up by which their number is chosen and agreed on."""
    for _ in range(warm_up):
        next(steps)
    began = time.perf_counter()
    for _ in range(warm_up):
        next(steps)
    count = agree(max(1, round(seconds * warm_up / (time.perf_counter() - began))))
    began = time.perf_counter()
    for _ in range(count):
        next(steps)
    return count / (time.perf_counter() - began)


def _agree(count: int) -> int:
    """The first rank's number."""
    number = torch.tensor(count)
    dist.broadcast(number, 0)
    return int(number)


def main() -> None:
    """Train as one process, or as one rank of several."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--store", help="a new file by which ranks find each other")
    given = parser.parse_args()
    network: Network = NETWORKS[given.network]
    torch.set_num_threads(given.threads)
    torch.manual_seed(given.rank)
    if given.ranks == 1:
        speed = _speed(_steps(network, lambda model: model, 0, 1), network.warm_up, given.seconds, lambda count: count)
    else:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{given.store}",
            rank=given.rank,
            world_size=given.ranks,
            timeout=timedelta(seconds=_TIMEOUT_S),
        )
        steps = _steps(
            network, lambda model: DistributedDataParallel(model, gradient_as_bucket_view=True), given.rank, given.ranks
        )
        speed = _speed(steps, network.warm_up, given.seconds, _agree)
        dist.destroy_process_group()
    print(json.dumps({"steps_per_second": speed}))


if __name__ == "__main__":
    main()
