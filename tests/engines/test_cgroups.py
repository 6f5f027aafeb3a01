"""The control groups of a process, from what the kernel writes of them."""

from pathlib import Path

import pytest

from distbelief.engines.cgroups import groups


@pytest.mark.parametrize(
    ("membership", "expected"),
    [
        ("0::/a/b\n", [("a/b", 2), ("a", 2), ("", 2)]),
        ("0::/\n", [("", 2)]),
        ("4:memory:/a\n3:cpu,cpuacct:/b\n1:name=systemd:/c\n", [("cpu/b", 1), ("cpu", 1)]),
        ("4:cpuacct:/a\n", []),
        ("0::/../..\n3:cpu:/b:c\n", [("../..", 2), ("..", 2), ("", 2), ("cpu/b:c", 1), ("cpu", 1)]),
    ],
)
def test_groups_up_to_the_root(tmp_path: Path, membership: str, expected: list[tuple[str, int]]) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "cgroup").write_text(membership)
    root = tmp_path / "mounted"
    assert list(groups("cpu", tmp_path, root)) == [(root / path, version) for path, version in expected]


def test_a_kernel_without_control_groups(tmp_path: Path) -> None:
    assert list(groups("cpu", tmp_path)) == []
