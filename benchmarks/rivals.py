"""What a user would pick instead: a plain torch loop, DistributedDataParallel, torchft. Each runs in fresh processes.

Started as `python -m benchmarks.rivals ASSIGNMENT FOLDER RANK`, this trains, and prints how it went as JSON.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, TextIO

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import TCPStore
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

import distbelief as db
from benchmarks.networks import NETWORKS, RATE, Network
from benchmarks.slowing import Law, slowed
from distbelief.run.evaluation import evaluate
from distbelief.task.data import rows_of
from distbelief.task.nested import moved

Name = Literal["plain", "ddp", "torchft"]
_TIMEOUT_S = 120
_EVALUATED_AT_ONCE = 512


class RivalFailed(Exception):
    """A rival did not come to its end; says the last line that it wrote."""


@dataclass(frozen=True, kw_only=True)
class Goal:
    """Training ends at the first evaluation, one every so many examples, at which the accuracy is reached."""

    accuracy: float
    every: int


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """One training of a rival. With a goal, `seconds` are the most that it may take, evaluations apart."""

    network: str
    framework: Name
    seconds: float
    ranks: int = 1
    threads: int = 1
    device: str = "cpu"
    law: Law | None = None
    rate: float = RATE
    seed: int = 0
    goal: Goal | None = None

    @classmethod
    def from_json(cls, text: str) -> Self:
        """What `json.dumps(asdict(…))` made of one."""
        given = json.loads(text)
        given["law"] = given["law"] and Law(**given["law"])
        given["goal"] = given["goal"] and Goal(**given["goal"])
        return cls(**given)


@dataclass(frozen=True)
class Outcome:
    """Steps a second, where a step is a batch of every rank, or with a goal the evaluations on the way to it."""

    steps_per_second: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)


def train_plain(
    network: Network, *, threads: int, seconds: float, device: str = "cpu", environment: Mapping[str, str] = {}
) -> float:
    """Steps a second of one torch process."""
    assignment = Assignment(network=network.name, framework="plain", threads=threads, device=device, seconds=seconds)
    return train(assignment, environment).steps_per_second


def train_ddp(network: Network, *, processes: int, seconds: float) -> float:
    """Steps a second of DistributedDataParallel over gloo, one thread a process; a step is a batch of every process."""
    return train(Assignment(network=network.name, framework="ddp", ranks=processes, seconds=seconds)).steps_per_second


def train(assignment: Assignment, environment: Mapping[str, str] = {}) -> Outcome:
    """Run all ranks to their end. Raises `RivalFailed` where one of them fails."""
    shared = {"OMP_NUM_THREADS": str(assignment.threads), "GLOO_SOCKET_IFNAME": "lo"}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        command = [sys.executable, "-m", "benchmarks.rivals", json.dumps(asdict(assignment)), folder]
        started = []
        for rank in range(assignment.ranks):
            errors = stack.enter_context((Path(folder) / f"errors-{rank}").open("w+"))
            process = subprocess.Popen(
                [*command, str(rank)],
                env={**os.environ, **shared, **environment},
                stdout=subprocess.PIPE,
                stderr=errors,
            )
            # The stack unwinds from its top: killed first, then waited for.
            stack.enter_context(process)
            stack.callback(process.kill)
            started.append((process, errors))
        outcomes = [outcome_of(*rank, timeout_s=assignment.seconds + _TIMEOUT_S) for rank in started]
    return min(outcomes, key=lambda outcome: outcome.steps_per_second)


def outcome_of(process: subprocess.Popen[bytes], errors: TextIO, timeout_s: float) -> Outcome:
    """What a rank prints at its end. Raises `RivalFailed` with the last line of its errors if it fails."""
    try:
        answer = process.communicate(timeout=timeout_s)[0]
    except subprocess.TimeoutExpired as error:
        raise RivalFailed(f"no answer within {timeout_s:.0f} s") from error
    if process.returncode:
        errors.seek(0)
        said = [line for line in errors.read().splitlines() if line.strip()]
        raise RivalFailed(said[-1] if said else f"exit code {process.returncode}")
    return Outcome(**json.loads(answer.splitlines()[-1]))


class Framework(NamedTuple):
    """How one rank works with the others."""

    model: Callable[[nn.Module], nn.Module] = lambda model: model
    rule: Callable[[Optimizer], Optimizer] = lambda rule: rule
    agree: Callable[[int], int] = lambda number: number
    """The first rank's number."""


@contextmanager
def _ddp(store: Path, rank: int, ranks: int) -> Iterator[Framework]:
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=_TIMEOUT_S),
    )
    yield Framework(lambda model: DistributedDataParallel(model, gradient_as_bucket_view=True), agree=_agree)
    dist.destroy_process_group()


def _agree(number: int) -> int:
    shared = torch.tensor(number)
    dist.broadcast(shared, 0)
    return int(shared)


@contextmanager
def _torchft(store: Path, rank: int, ranks: int) -> Iterator[Framework]:
    """Each rank is a replica group of its own; the first also runs the lighthouse, by which they find a quorum."""
    import torchft  # here, because nobody else needs it
    from torchft.coordination import LighthouseServer

    with _ddp(store, rank, ranks) as ordinary:
        lighthouse = LighthouseServer(bind="[::]:0", min_replicas=ranks) if rank == 0 else None
        port = ordinary.agree(int(lighthouse.address().rpartition(":")[2]) if lighthouse else 0)
        own = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
        manager = torchft.Manager(
            pg=torchft.ProcessGroupGloo(timeout=timedelta(seconds=_TIMEOUT_S)),
            load_state_dict=lambda state: None,
            state_dict=dict,
            min_replica_size=ranks,
            rank=0,
            world_size=1,
            store_addr="localhost",
            store_port=own.port,
            hostname="localhost",
            lighthouse_addr=f"http://localhost:{port}",
            replica_id=f"rank-{rank}",
            # All begin from the same seed.
            init_sync=False,
        )
        yield Framework(
            lambda model: torchft.DistributedDataParallel(manager, model, gradient_as_bucket_view=True),
            lambda rule: torchft.Optimizer(manager, rule),
            ordinary.agree,
        )
        # Whoever leaves first would have the others wait for a new quorum.
        ordinary.agree(0)
        manager.shutdown(wait=False)
        if lighthouse:
            lighthouse.shutdown()


def _framework(name: Name, store: Path, rank: int, ranks: int) -> AbstractContextManager[Framework]:
    if name == "ddp":
        return _ddp(store, rank, ranks)
    return _torchft(store, rank, ranks) if name == "torchft" else nullcontext(Framework())


def _steps(task: db.Task, module: nn.Module, framework: Framework, assignment: Assignment, rank: int) -> Iterator[None]:
    """The plain loop: one step at a time, epoch after epoch, on this rank's share of the batches."""
    assert task.loss is not None
    rows = rows_of(task.train, "train")[0]
    batch_size = NETWORKS[assignment.network].batch_size
    device = torch.device(assignment.device)
    model = framework.model(module.train().to(device))
    # The rule of our shards, in the fastest form that torch has; for a GPU it has no fused one.
    form = {"fused": True} if device.type == "cpu" else {"foreach": True}
    rule = framework.rule(
        torch.optim.Adagrad(model.parameters(), lr=assignment.rate, eps=0, initial_accumulator_value=2**-126, **form)
    )
    order = torch.Generator().manual_seed(assignment.seed)
    while True:
        for indices in torch.randperm(len(rows), generator=order).split(batch_size)[rank :: assignment.ranks]:
            inputs, targets = moved(rows.batch(indices.numpy()), device)
            rule.zero_grad(set_to_none=True)
            loss: Tensor = task.loss(model(inputs), targets)
            loss.backward()
            rule.step()
            loss.item()
            yield


def _speed(steps: Iterator[None], warm_up: int, seconds: float, agree: Callable[[int], int]) -> Outcome:
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
    return Outcome(count / (time.perf_counter() - began))


def pursue(
    steps: Iterator[None],
    judge: Callable[[], dict[str, float]],
    agree: Callable[[int], int],
    goal: Goal,
    *,
    examples_a_step: int,
    limit_s: float,
) -> Outcome:
    """Train until the goal or the limit is reached; the clock stands while anybody evaluates."""
    history: list[dict[str, float]] = []
    seconds, examples = 0.0, 0
    going = 1
    while going:
        began = time.perf_counter()
        for _ in range(goal.every // examples_a_step):
            next(steps)
        seconds += time.perf_counter() - began
        examples += goal.every // examples_a_step * examples_a_step
        history.append({"seconds": seconds, "examples": examples, **judge()})
        # Not before all are there does the clock go on.
        going = agree(int(seconds < limit_s and not history[-1].get("accuracy", 0.0) >= goal.accuracy))
    return Outcome(history=history)


def _judge(task: db.Task, module: nn.Module, data: Any) -> dict[str, float]:
    found = evaluate(task, module, rows_of(data, "data")[0], _EVALUATED_AT_ONCE)
    module.train()
    return found


def _work(assignment: Assignment, folder: Path, rank: int) -> Outcome:
    network = NETWORKS[assignment.network]
    task = slowed(network.task(), assignment.law, folder)
    module = task.build(assignment.seed)
    with _framework(assignment.framework, folder / "store", rank, assignment.ranks) as framework:
        steps = _steps(task, module, framework, assignment, rank)
        if assignment.goal is None:
            return _speed(steps, network.warm_up, assignment.seconds, framework.agree)
        outcome = pursue(
            steps,
            lambda: _judge(task, module, task.validation) if rank == 0 else {},
            framework.agree,
            assignment.goal,
            examples_a_step=network.batch_size * assignment.ranks,
            limit_s=assignment.seconds,
        )
    if rank == 0 and task.test is not None:
        last = _judge(task, module, task.test)
        outcome.history[-1].update({f"test_{name}": value for name, value in last.items()})
    return outcome


def main() -> None:
    """Train as one process, or as one rank of several."""
    assignment, folder, rank = Assignment.from_json(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(assignment.threads)
    torch.manual_seed(rank)
    print(json.dumps(asdict(_work(assignment, folder, rank))))


if __name__ == "__main__":
    main()
