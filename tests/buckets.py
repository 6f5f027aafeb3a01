"""An object store for tests, `bucket://`: files of this machine, in no folders that were not asked for.

bucket:///tmp/…       an object store: what is killed in the midst of a request has done nothing
server:///tmp/…       a file server: it leaves half of a file
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

Request = Callable[[str, str], None]


def reachable(request: str, path: str) -> None:
    """No request is hindered."""


class Bucket(LocalFileSystem):  # type: ignore[misc]
    """Whatever changes something there asks `before` first, which may raise."""

    protocol = "bucket"
    before: Request = staticmethod(reachable)

    def pipe_file(self, path: str, value: bytes, **options: Any) -> None:
        self._write(path, value)

    def put_file(self, lpath: str, rpath: str, **options: Any) -> None:
        self._write(rpath, Path(lpath).read_bytes())

    def get_file(self, rpath: str, lpath: str, **options: Any) -> None:
        shutil.copyfile(self._strip_protocol(rpath), lpath)

    def rm_file(self, path: str) -> None:
        Bucket.before("remove", path)
        Path(self._strip_protocol(path)).unlink()

    def _write(self, path: str, value: bytes) -> None:
        place = Path(self._strip_protocol(path))
        if not place.parent.is_dir():
            raise FileNotFoundError(f"there is no {place.parent}")
        Bucket.before("write", path)
        place.write_bytes(value)


class Server(Bucket):
    """What is killed in a write leaves half of the file."""

    protocol = "server"

    def _write(self, path: str, value: bytes) -> None:
        place = Path(self._strip_protocol(path))
        before = place.read_bytes() if place.exists() else None
        place.write_bytes(value[: len(value) // 2])
        try:
            Bucket.before("write", path)
        except BaseException:
            place.unlink() if before is None else place.write_bytes(before)
            raise
        place.write_bytes(value)


def register() -> None:
    """Have both be known in this process."""
    for kind in (Bucket, Server):
        fsspec.register_implementation(kind.protocol, kind, clobber=True)
