"""The control groups that this process is in: where a container's limits are written."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")


class Group(NamedTuple):
    """A control group's folder, and the version of its interface: 1 or 2."""

    folder: Path
    version: int


def groups(controller: str, proc: Path = PROC, cgroups: Path = CGROUPS) -> Iterator[Group]:
    """Every control group that limits this process in that respect ("memory", "cpu"), up to the root.

    A container may be shown its path on the host while its own group is mounted as the root, so that some of these
    folders are not there.
    """
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield from (Group(folder, 2) for folder in _upwards(cgroups, path))
        elif controller in controllers.split(","):
            yield from (Group(folder, 1) for folder in _upwards(cgroups / controller, path))


def _upwards(root: Path, path: str) -> Iterator[Path]:
    folder = root / path.strip("/")
    while folder.is_relative_to(root):
        yield folder
        folder = folder.parent
