"""Memory: what this process may still take, and whether that is enough for a run."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from distbelief.engines.cgroups import CGROUPS, PROC, groups
from distbelief.errors import UsageError

_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    2: ("memory.max", "memory.current", ""),
}
"""By the version of control groups: the limit, what counts towards it, and the prefix of sums over a group's own."""
_KIB = 1024
_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def available() -> int:
    """Bytes that this process may still take: the machine's, or its control group's where that has less room."""
    return available_in(PROC, CGROUPS)


def available_in(proc: Path, cgroups: Path) -> int:
    """`available`, of these mounts of procfs and of the control groups, version 1 or 2."""
    return min([_of_machine((proc / "meminfo").read_text()), *_rooms(proc, cgroups)])


def require(needed: Mapping[str, int], available: int) -> None:
    """Raise `UsageError` unless the sum of what is needed, bytes by the name of the part, is available."""
    total = sum(needed.values())
    if total > available:
        parts = ", ".join(f"{name} {told_bytes(size)}" for name, size in needed.items())
        raise UsageError(
            f"the run needs {told_bytes(total)} of memory ({parts}), but {told_bytes(available)} are free: choose an "
            "optimizer with less state (SGD without momentum has none), a smaller model or fewer replicas, or give "
            "arrays as .npy files, which are mapped and not copied"
        )


def told_bytes(size: int) -> str:
    """A number of bytes for a person, such as 1.5 GB."""
    factor, unit = next(((f, u) for f, u in _UNITS if abs(size) >= f), (1, "bytes"))
    return f"{size / factor:.3g} {unit}" if factor > 1 else f"{size} {unit}"


def _of_machine(meminfo: str) -> int:
    """What could be taken without swapping: what is free, and what the kernel would give up for it."""
    line = next(line for line in meminfo.splitlines() if line.startswith("MemAvailable:"))
    return int(line.split()[1]) * _KIB


def _rooms(proc: Path, cgroups: Path) -> Iterator[int]:
    """The room in each control group that has a limit: the smallest is what counts."""
    for folder, version in groups("memory", proc, cgroups):
        limit, usage, prefix = _FILES[version]
        try:
            most, used = (folder / limit).read_text().strip(), int((folder / usage).read_text())
            cached = _cached((folder / "memory.stat").read_text(), prefix)
        except OSError:
            continue
        if most != "max":
            yield max(0, int(most) - used + cached)


def _cached(stat: str, prefix: str) -> int:
    """What counts as used and is given up as soon as somebody needs it: pages of files."""
    fields = dict(line.split() for line in stat.splitlines())
    return sum(int(fields.get(f"{prefix}{name}", 0)) for name in ("active_file", "inactive_file"))
