"""Whether this machine can train: what is there, what is missing, and what to do about it.

Each check is a function of what was found, so that it can be asked about any machine; `examine` looks at this one.
"""

import errno
import fcntl
import importlib.metadata
import importlib.util
import os
import platform
import re
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from distbelief.engines.cgroups import CGROUPS, PROC, groups
from distbelief.engines.local import Local, cores
from distbelief.engines.memory import available, told_bytes
from distbelief.errors import DistBeliefError
from distbelief.observe.progress import count

_REPLICA_BYTES = 400 * 10**6
"""What a process that has imported torch takes, before it holds any model."""
_ROOM_BYTES = 10**9
"""Disk from which on nobody needs to think of it: a few checkpoints of a model of average size."""
_LOADER_BYTES = 256 * 10**6
"""What batches that are sent by loader processes may take."""
_FILES = 256
"""Open files that a run with many replicas can do with."""
_EXTRAS = {
    "espeakng_loader": "synthetic speech (the tasks speech and speech-paper)",
    "matplotlib": "plots in reports",
    "tensorboard": "TensorBoard",
    "ray": "clusters",
}
_EXAMPLES = 320
"""Of a tiny run: ten batches."""


class Verdict(NamedTuple):
    """How something is, and a sentence: what was found and, where it is not fine, what to do.

    "note": training works, but something is slower or missing. "wrong": nothing can be trained like this.
    """

    state: Literal["fine", "note", "wrong"]
    told: str


Finding = tuple[str, Verdict]
"""What was looked at, and how it is."""
fine, note, wrong = partial(Verdict, "fine"), partial(Verdict, "note"), partial(Verdict, "wrong")
_STYLES = {"fine": "green", "note": "yellow", "wrong": "red"}


def examine(folder: Path) -> Iterator[Finding]:
    """Look at this machine, for runs that are written under `folder`. The last finding is a run, if one makes sense."""
    usable = True
    for name, verdict in _ingredients(folder):
        usable &= verdict.state != "wrong"
        yield name, verdict
    if usable:
        yield "training", training(*_try_to_train())


def _ingredients(folder: Path) -> Iterator[Finding]:
    asked = importlib.metadata.metadata("distbelief")["Requires-Python"] or ""
    yield "python", release("python", platform.python_version(), asked.removeprefix(">="))
    found, cuda, devices = _torch()
    yield "torch", release("torch", found, _least("torch"))
    there = os.cpu_count() or cores()
    yield "cores", processors(cores(), there, cpu_quota(), os.environ.get("OMP_NUM_THREADS"))
    yield "memory", memory(available(), _REPLICA_BYTES, Local().replicas)
    yield "shared memory", shared_memory(_fault(lambda: os.fdopen(os.memfd_create("distbelief-doctor"), "r+b")))
    yield "/dev/shm", loader_memory(_free(Path("/dev/shm")))
    # The folder of the runs, or the nearest above it that is there.
    runs = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    for name, place in (("runs", runs), ("temporary files", Path(os.environ.get("TMPDIR", "/tmp")))):
        yield name, disk(name, place, _free(place), os.access(place, os.W_OK | os.X_OK))
    unlocked = _fault(partial(tempfile.TemporaryFile, dir=runs), errno.EACCES, errno.EROFS, errno.ENOSPC)
    yield "file locks", locks(runs, unlocked)
    yield "open files", open_files(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    yield "gpu", gpu(cuda, devices, any(Path("/dev").glob("nvidia[0-9]*")))
    for module, purpose in _EXTRAS.items():
        yield module, extra(importlib.util.find_spec(module) is not None, purpose, module.replace("_", "-"))


def shown(findings: Iterator[Finding]) -> list[Finding]:
    """Print findings as they come, as lines, or as a table where somebody looks; and return them."""
    console = Console(highlight=False, markup=False)
    table = Table(box=None, pad_edge=False, show_header=False)
    seen = []
    with console.status("looking, and training for a moment"):
        for name, (state, told) in findings:
            seen.append((name, Verdict(state, told)))
            if console.is_terminal:
                table.add_row(Text(name, "cyan"), Text(state, _STYLES[state]), told)
            else:
                console.print(f"{state:<5}  {name:<15}  {told}", soft_wrap=True)
    if console.is_terminal:
        console.print(table)
    return seen


# The checks


def release(name: str, found: str | None, least: str) -> Verdict:
    """The version of Python or torch; None where it cannot be imported."""
    mend = f"install Python {least} or newer" if name == "python" else f'pip install "{name}>={least}"'
    if found is None:
        return wrong(f"{name} cannot be imported: {mend}")
    return wrong(f"{found} is too old: {mend}") if _version(found) < _version(least) else fine(found)


def processors(usable: int, there: int, quota: float | None, omp_threads: str | None) -> Verdict:
    """Cores that the process may run on, of those that are there; the cores' worth of time that its group may take."""
    told = f"{usable} of {there} cores" if usable < there else count(usable, "core")
    if quota is not None and quota < usable:
        fitting = max(1, int(quota))
        return note(
            f"{told}, but this container may take the time of {quota:g} only: train with --replicas {fitting} "
            "--threads 1, or replicas slow each other down"
        )
    if omp_threads is not None and not (omp_threads.isdigit() and int(omp_threads)):
        return note(f"{told}; OMP_NUM_THREADS={omp_threads} is no number of threads: unset it")
    # Replicas are told their number of threads whatever it says: only evaluations obey it.
    if omp_threads is not None and int(omp_threads) < usable:
        return note(f"{told}, but OMP_NUM_THREADS={omp_threads} keeps evaluations to fewer: unset it")
    return fine(told)


def memory(available: int, replica: int, replicas: int) -> Verdict:
    """Memory for the controller and `replicas` replicas, which take `replica` bytes each before they hold a model."""
    room, free = available // replica - 1, told_bytes(available)
    if room < 1:
        return wrong(
            f"{free} are free, but a run takes {told_bytes(2 * replica)} before it holds any model: "
            "end other programs, or raise the container's limit"
        )
    if room < replicas:
        return note(f"{free} are free, too little for {count(replicas, 'replica')}: train with --replicas {room}")
    return fine(f"{free} free")


def shared_memory(fault: str | None) -> Verdict:
    """The shards' memory, and the locks in it: what went wrong when some was made, or None."""
    if fault is not None:
        return wrong(
            f"anonymous shared memory cannot be had ({fault}): shards live in it, so use Linux 5.3 or newer, and a "
            "sandbox that allows memfd_create and file locks"
        )
    return fine("memfd and its locks work; it is as large as the memory")


def loader_memory(free: int | None) -> Verdict:
    """/dev/shm, through which torch's loader processes send their batches; None where it is not there."""
    if free is None or free < _LOADER_BYTES:
        size = "is not there" if free is None else f"has {told_bytes(free)}"
        return note(
            f"it {size}, which matters for data with num_workers above 0 only: start the container with --shm-size=1g"
        )
    return fine(f"{told_bytes(free)} free")


def disk(name: str, folder: Path, free: int | None, writable: bool) -> Verdict:
    """The disk that a folder is on."""
    if free is None or not writable:
        mend = "set TMPDIR to a folder that is" if name == "temporary files" else "give one that is as --directory"
        return wrong(f"{folder} is not writable: {mend}, or work from another place")
    if free < _ROOM_BYTES:
        return note(f"{told_bytes(free)} free in {folder}: a large model's checkpoints may not fit, make room")
    return fine(f"{told_bytes(free)} free in {folder}")


def locks(folder: Path, fault: str | None) -> Verdict:
    """Locks of files on the disk of a folder: what went wrong when one was taken, or None."""
    if fault is not None:
        return wrong(
            f"files in {folder} cannot be locked ({fault}), as happens on some network disks: give a --directory on a "
            "local disk"
        )
    return fine(f"work in {folder}")


def open_files(limit: int) -> Verdict:
    """How many files a process may have open; -1 is any number."""
    if 0 <= limit < _FILES:
        return note(f"a process may have {limit} open, few for many replicas: ulimit -n 4096")
    return fine("no limit" if limit < 0 else f"{limit:,} a process")


def gpu(cuda: str | None, devices: Sequence[tuple[str, int]], driver: bool) -> Verdict:
    """GPUs: torch's version of CUDA, the name and bytes of each that torch sees, and whether a driver shows any."""
    if devices:
        return fine(", ".join(f"{name} ({told_bytes(size)})" for name, size in devices))
    if not driver:
        return fine("none: replicas compute on the CPU")
    if cuda is None:
        return note(
            "there is one, but this torch has no CUDA: install the build for your driver, see pytorch.org/get-started"
        )
    return note(
        f"there is one, but torch cannot use it with CUDA {cuda}: update its driver, or install a torch for an "
        "older CUDA"
    )


def extra(found: bool, purpose: str, package: str) -> Verdict:
    """An optional package."""
    return fine("installed") if found else note(f"not installed; for {purpose}: pip install {package}")


def training(seconds: float, fault: str | None) -> Verdict:
    """A tiny run: how long it took, and what went wrong."""
    if fault is not None:
        return wrong(
            f"a tiny run failed after {seconds:.1f} s ({fault}): "
            "distbelief train digits --epochs 1 --verbose shows where"
        )
    return fine(f"a tiny run took {seconds:.1f} s, processes and set-up included")


# This machine


def cpu_quota(proc: Path = PROC, cgroups: Path = CGROUPS) -> float | None:
    """Cores' worth of time that the control groups of this process grant; None without a limit."""
    quotas = []
    for folder, version in groups("cpu", proc, cgroups):
        names = ("cpu.max",) if version == 2 else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        try:
            quota, period = " ".join((folder / name).read_text().strip() for name in names).split()
        except OSError:
            continue
        if quota not in ("max", "-1"):
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def _least(package: str) -> str:
    """The oldest version of a package that this one asks for."""
    asked = (re.fullmatch(rf"{package}>=([\d.]+)", one) for one in importlib.metadata.requires("distbelief") or ())
    return next((match[1] for match in asked if match), "0")


def _version(text: str) -> tuple[int, ...]:
    """2.13.0+cpu is (2, 13, 0)."""
    match = re.match(r"\d+(\.\d+)*", text)
    return tuple(map(int, match[0].split("."))) if match else ()


def _torch() -> tuple[str | None, str | None, list[tuple[str, int]]]:
    """Torch's version, that of its CUDA, and the GPUs that it can use."""
    try:
        import torch
    except (ImportError, OSError):
        return None, None, []
    usable = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    gpus = [(gpu.name, gpu.total_memory) for gpu in map(torch.cuda.get_device_properties, usable)]
    return torch.__version__, torch.version.cuda, gpus


def _fault(opened: Callable[[], IO[Any]], *elsewhere: int) -> str | None:
    """Open a file, write to it and lock it; what went wrong. Errors of some numbers are another finding's matter."""
    try:
        with opened() as file:
            file.write(b"1")
            file.flush()
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0)
    except (AttributeError, OSError) as error:
        return None if getattr(error, "errno", None) in elsewhere else str(error)
    return None


def _free(folder: Path) -> int | None:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def _try_to_train() -> tuple[float, str | None]:
    """Train a ready-made task for a few batches, and say how many seconds that took, and what went wrong."""
    import distbelief as db

    began = time.monotonic()
    fault = None
    task, method, until = db.tasks.digits(), db.Downpour(replicas=1), db.Until(examples=_EXAMPLES)
    try:
        with tempfile.TemporaryDirectory(prefix="distbelief-doctor-") as folder:
            db.train(task, method, until=until, directory=folder, progress=False)
    except (DistBeliefError, OSError, RuntimeError) as error:
        fault = str(error).splitlines()[0] if str(error) else type(error).__name__
    return time.monotonic() - began, fault
