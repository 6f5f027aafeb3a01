"""What this process may still take, from files as the kernel writes them."""

from pathlib import Path

import pytest

from distbelief.engines.memory import available, available_in, require, told_bytes
from distbelief.errors import UsageError

GB = 10**9
MEMINFO = "MemTotal:       16000000 kB\nMemFree:         1000000 kB\nMemAvailable:    8000000 kB\n"
MACHINE = 8_000_000 * 1024
UNLIMITED_V1 = 9_223_372_036_854_771_712


def machine(folder: Path, membership: str, groups: dict[str, dict[str, str]]) -> int:
    """What is available where the files say this."""
    (folder / "proc" / "self").mkdir(parents=True)
    (folder / "proc" / "meminfo").write_text(MEMINFO)
    (folder / "proc" / "self" / "cgroup").write_text(membership)
    for group, files in groups.items():
        (folder / "cgroup" / group).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / "cgroup" / group / name).write_text(text)
    return available_in(folder / "proc", folder / "cgroup")


def v2(limit: str, used: int, stat: str = "anon 5\n") -> dict[str, str]:
    return {"memory.max": f"{limit}\n", "memory.current": f"{used}\n", "memory.stat": stat}


def v1(limit: int, used: int, stat: str = "cache 5\n") -> dict[str, str]:
    return {"memory.limit_in_bytes": f"{limit}\n", "memory.usage_in_bytes": f"{used}\n", "memory.stat": stat}


def test_this_machine_has_some() -> None:
    assert 0 < available() < 1 << 60


def test_without_groups_it_is_the_machines(tmp_path: Path) -> None:
    assert machine(tmp_path, "", {}) == MACHINE


def test_without_a_list_of_groups_it_is_the_machines(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text(MEMINFO)
    assert available_in(tmp_path, tmp_path / "nowhere") == MACHINE


def test_the_smallest_room_up_to_the_root_counts(tmp_path: Path) -> None:
    groups = {"a/b": v2("max", GB), "a": v2(str(4 * GB), GB), "": {}}
    assert machine(tmp_path, "0::/a/b\n", groups) == 3 * GB


def test_pages_of_files_are_given_up(tmp_path: Path) -> None:
    stat = f"anon 1\nfile 5\nshmem {GB}\ninactive_file {GB // 2}\nactive_file {GB // 4}\n"
    assert machine(tmp_path, "0::/a\n", {"a": v2(str(2 * GB), GB, stat)}) == GB + GB // 2 + GB // 4


def test_a_group_that_is_over_its_limit_has_no_room(tmp_path: Path) -> None:
    assert machine(tmp_path, "0::/\n", {"": v2(str(GB), 2 * GB)}) == 0


def test_a_container_whose_group_is_mounted_as_the_root(tmp_path: Path) -> None:
    assert machine(tmp_path, "0::/of/the/host\n", {"": v2(str(3 * GB), GB)}) == 2 * GB


def test_version_1(tmp_path: Path) -> None:
    stat = f"inactive_file 7\ntotal_inactive_file {GB}\ntotal_active_file 0\n"
    groups = {"memory/a": v1(4 * GB, 2 * GB, stat), "memory": v1(UNLIMITED_V1, 5 * GB)}
    assert machine(tmp_path, "3:cpu,cpuacct:/a\n2:memory:/a\n1:name=systemd:/x\n0::/\n", groups) == 3 * GB


def test_what_fits_is_let_through() -> None:
    require({}, 0)
    require({"parameters": 3, "optimizer state": 4}, 7)


def test_what_does_not_fit_is_told_by_its_parts() -> None:
    with pytest.raises(UsageError) as error:
        require({"parameters": 2 * GB, "optimizer state": 4 * GB, "data": 250_000_000}, 5 * GB)
    assert str(error.value).startswith(
        "the run needs 6.25 GB of memory (parameters 2 GB, optimizer state 4 GB, data 250 MB), but 5 GB are free: "
    )
    assert ".npy" in str(error.value)
    assert "SGD" in str(error.value)


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 bytes"), (999, "999 bytes"), (1_500, "1.5 kB"), (3 * GB, "3 GB"), (512 * GB, "512 GB")]
)
def test_bytes_are_told_in_a_unit_that_fits(size: int, text: str) -> None:
    assert told_bytes(size) == text
