"""Files by URL, and what is said where there can be none."""

import sys
from pathlib import Path

import pytest

from distbelief.errors import DirectoryError, UsageError
from distbelief.run.store import Store, place, reading
from tests import buckets


@pytest.fixture(autouse=True)
def _registered() -> None:
    buckets.register()


def test_what_is_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert place("s3://mine/run/") == "s3://mine/run"
    assert place("simplecache::s3://mine/run") == "simplecache::s3://mine/run"
    assert place("runs/mine") == place(Path("runs/mine")) == tmp_path / "runs" / "mine"
    assert place("file:///runs/mine") == Path("/runs/mine")


def test_a_file_is_written_read_and_removed(tmp_path: Path) -> None:
    store = Store(f"bucket://{tmp_path}/a/b")
    assert store.names() == set()
    store.write("c/small", b"text")
    (tmp_path / "large").write_bytes(b"bytes")
    store.send(tmp_path / "large", "c/large")
    assert store.names() == {"c/small", "c/large"}
    assert store.read("c/small") == b"text"
    store.fetch("c/large", tmp_path / "here" / "large")
    assert (tmp_path / "here" / "large").read_bytes() == b"bytes"
    store.remove("c/small")
    store.remove("c/small")
    assert store.names() == {"c/large"}
    with pytest.raises(FileNotFoundError):
        store.read("c/small")
    with pytest.raises(FileNotFoundError):
        store.fetch("c/small", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_no_bucket_is_made() -> None:
    with pytest.raises(FileNotFoundError):
        Store("bucket:///no-such-bucket-of-distbelief/run").write("name", b"")
    assert not Path("/no-such-bucket-of-distbelief").exists()


def test_every_error_is_of_the_operating_systems_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries behind a URL have their own: of credentials, for one."""

    class NoCredentials(Exception):
        pass

    def refuse(request: str, path: str) -> None:
        raise NoCredentials("none found\nlook at ~/.aws")

    monkeypatch.setattr(buckets.Bucket, "before", staticmethod(refuse))
    store = Store(f"bucket://{tmp_path}")
    with pytest.raises(OSError, match="NoCredentials: none found"):
        store.write("name", b"")


def test_what_is_missing_is_said_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"never://mine/run .* \(Protocol not known: never\): install"):
        Store("never://mine/run")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(UsageError, match=r"needs fsspec: pip install 'distbelief\[url\]'"):
        Store("s3://mine/run")


def test_copies_to_be_read_are_told_of_as_what_they_are_copies_of(tmp_path: Path) -> None:
    (tmp_path / "task.json").write_text("{")

    def damaged() -> None:
        with reading(f"bucket://{tmp_path}", ["task.json", "summary.json"]) as folder:
            assert [path.name for path in folder.iterdir()] == ["task.json"]
            raise DirectoryError(f"{folder}/task.json is damaged")

    with pytest.raises(DirectoryError, match=rf"^bucket://{tmp_path}/task.json is damaged"):
        damaged()
    with reading(tmp_path, ["task.json"]) as folder:
        assert folder == tmp_path
