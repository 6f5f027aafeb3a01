"""What the doctor says of machines of any kind; tests/cli/test_commands.py asks it about this one."""

from pathlib import Path

import pytest

from distbelief.cli import doctor
from distbelief.cli.doctor import Verdict

GB = 10**9
HERE = Path("/runs")


@pytest.mark.parametrize(
    ("finding", "told"),
    [
        (doctor.release("python", "3.12.1", "3.11"), "3.12.1"),
        (doctor.release("torch", "2.13.0+cpu", "2.6"), "2.13.0+cpu"),
        (doctor.release("torch", "2.10.0a0+git1", "2.6"), "2.10"),
        (doctor.processors(8, 8, None, None), "8 cores"),
        (doctor.processors(2, 8, 2.0, "4"), "2 of 8 cores"),
        (doctor.processors(1, 1, None, None), "1 core"),
        (doctor.memory(5 * GB, GB, 4), "5 GB free"),
        (doctor.shared_memory(None), "work"),
        (doctor.loader_memory(GB), "1 GB free"),
        (doctor.disk("runs", HERE, 50 * GB, True), "50 GB free in /runs"),
        (doctor.locks(HERE, None), "/runs"),
        (doctor.open_files(-1), "no limit"),
        (doctor.open_files(1024), "1,024"),
        (doctor.gpu(None, [], False), "none"),
        (doctor.gpu("12.6", [("H100", 80 * GB), ("H100", 80 * GB)], True), "H100 (80 GB), H100 (80 GB)"),
        (doctor.extra(True, "clusters", "ray"), "installed"),
        (doctor.training(2.04, None), "2.0 s"),
    ],
)
def test_what_is_fine(finding: Verdict, told: str) -> None:
    assert finding.state == "fine"
    assert told in finding.told


@pytest.mark.parametrize(
    ("finding", "mend"),
    [
        (doctor.processors(8, 8, 1.5, None), "--replicas 1 --threads 1"),
        (doctor.processors(8, 8, 0.5, None), "--replicas 1 "),
        (doctor.processors(8, 8, None, "lots"), "OMP_NUM_THREADS=lots is no number of threads: unset it"),
        (doctor.processors(8, 8, None, "0"), "is no number"),
        (doctor.processors(8, 8, None, "-1"), "is no number"),
        (doctor.processors(8, 8, None, "1"), "OMP_NUM_THREADS=1 keeps evaluations to fewer"),
        (doctor.memory(3 * GB, GB, 4), "--replicas 2"),
        (doctor.loader_memory(None), "--shm-size"),
        (doctor.loader_memory(64 * 10**6), "64 MB"),
        (doctor.disk("runs", HERE, 0, True), "make room"),
        (doctor.open_files(64), "ulimit -n 4096"),
        (doctor.open_files(0), "ulimit -n 4096"),
        (doctor.gpu(None, [], True), "this torch has no CUDA"),
        (doctor.gpu("12.6", [], True), "cannot use it with CUDA 12.6"),
        (doctor.extra(False, "clusters", "ray"), "for clusters: pip install ray"),
    ],
)
def test_what_can_be_trained_with_but_could_be_better(finding: Verdict, mend: str) -> None:
    assert finding.state == "note"
    assert mend in finding.told


@pytest.mark.parametrize(
    ("finding", "mend"),
    [
        (doctor.release("python", "3.9.2", "3.11"), "install Python 3.11 or newer"),
        (doctor.release("torch", None, "2.6"), 'pip install "torch>=2.6"'),
        (doctor.release("torch", "2.5.1", "2.6"), "too old"),
        (doctor.release("torch", "nonsense", "2.6"), "too old"),
        (doctor.memory(2 * GB - 1, GB, 4), "end other programs"),
        (doctor.memory(0, GB, 4), "0 bytes are free"),
        (doctor.shared_memory("Function not implemented"), "Function not implemented"),
        (doctor.disk("runs", HERE, GB, False), "/runs is not writable: give one that is as --directory"),
        (doctor.disk("temporary files", HERE, None, True), "set TMPDIR"),
        (doctor.locks(HERE, "No locks available"), "--directory on a local disk"),
        (doctor.training(1.0, "oh"), "(oh)"),
    ],
)
def test_what_nothing_can_be_trained_with(finding: Verdict, mend: str) -> None:
    assert finding.state == "wrong"
    assert mend in finding.told


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "150000 100000"}, 1.5),
        ("0::/\n", {}, None),
        ("0::/\n", {"cpu.max": "max 100000"}, None),
        ("2:cpu:/x\n", {"cpu/x/cpu.cfs_quota_us": "50000", "cpu/x/cpu.cfs_period_us": "100000"}, 0.5),
        ("2:cpu:/x\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
    ],
)
def test_the_smallest_share_of_time_counts(
    tmp_path: Path, membership: str, files: dict[str, str], expected: float | None
) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "cgroup").write_text(membership)
    for name, text in files.items():
        path = tmp_path / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    assert doctor.cpu_quota(tmp_path, tmp_path / "groups") == expected


def test_findings_are_lines_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    findings = [("memory", doctor.fine("[1] " + "long " * 40)), ("runs", doctor.wrong("none"))]
    assert doctor.shown(iter(findings)) == findings
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("fine   memory           [1] long long")
    assert second == "wrong  runs             none"
