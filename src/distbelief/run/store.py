"""Where a run lies that is named by a URL: a file system of `fsspec`, every error of which is an `OSError`.

1.  A file is written as a whole, by one request. Object stores know no half of one; other servers may leave it after a
    kill.
2.  Large files are streamed from and to the disk: none of them is in memory as a whole.
3.  No bucket is made: a misspelt one would become a new one.
"""

import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, final

from distbelief.errors import DirectoryError, TaskError, UsageError

_URL = re.compile(r"[a-z][a-z0-9+.:-]*://", re.IGNORECASE)
_FILE = "file://"
_LOST = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


def place(directory: str | Path) -> str | Path:
    """What a run's directory is called: a URL as text, anything else, and `file://`, as an absolute path."""
    text = str(directory)
    if isinstance(directory, str) and _URL.match(text) and not text.startswith(_FILE):
        return text.rstrip("/")
    # Absolute: what the user's code does to the working directory is not to move the run.
    return Path(text.removeprefix(_FILE)).absolute()


@contextmanager
def reading(directory: str | Path, names: Sequence[str]) -> Iterator[Path]:
    """A folder that holds these files of a run, as far as there are such: the run's own, or copies of those at a URL.

    Copies go when it ends; what has been mapped of them stays readable. Raises `UsageError` for a URL that cannot be
    used, `DirectoryError` where it cannot be read.
    """
    url = place(directory)
    if isinstance(url, Path):
        yield Path(str(directory).removeprefix(_FILE))
        return
    store = Store(url)
    with tempfile.TemporaryDirectory(prefix="distbelief-", ignore_cleanup_errors=True) as folder:
        try:
            for name in names:
                with suppress(*_LOST):
                    store.fetch(name, Path(folder, name))
        except OSError as error:
            raise DirectoryError(f"{url} cannot be read ({why(error)}): look at the URL and its credentials") from error
        try:
            yield Path(folder)
        except (DirectoryError, TaskError) as error:
            # Of the files where they are, not of copies.
            raise type(error)(str(error).replace(folder, url)) from error


def why(error: OSError) -> str:
    """What went wrong, in a line."""
    return error.strerror or str(error).partition("\n")[0] or type(error).__name__


@final
class Store:
    """The files below a URL, by names with slashes. All methods raise `OSError`.

    Raises `UsageError` where nothing is installed for its scheme.
    """

    def __init__(self, url: str) -> None:
        try:
            import fsspec
        except ImportError as error:
            wrong = f"{url} is a URL, which needs fsspec: pip install 'distbelief[url]', or give the path of a folder"
            raise UsageError(wrong) from error
        try:
            fsspec.get_filesystem_class(re.split("::|://", url)[0])
            with _as_os_errors():
                self._files, root = fsspec.url_to_fs(url)
        except (ImportError, ValueError) as error:
            # It names the package that is to be installed.
            wrong = f"{url} cannot be a run's directory ({error}): install what is missing, or give a folder"
            raise UsageError(wrong) from error
        except OSError as error:
            raise DirectoryError(f"{url} cannot be used ({why(error)}): look at the URL and its credentials") from error
        self._root = str(root).rstrip("/")
        self._made: set[str] = set()

    def names(self) -> set[str]:
        """All files there; none where nothing is there."""
        with _as_os_errors(), suppress(FileNotFoundError):
            self._files.invalidate_cache()
            return {str(path).removeprefix(self._root).strip("/") for path in self._files.find(self._root)}
        return set()

    def read(self, name: str) -> bytes:
        """The content of a small file."""
        with _as_os_errors():
            return bytes(self._files.cat_file(self._path(name)))

    def write(self, name: str, content: bytes) -> None:
        """Write a small file, in the place of one that is there."""
        with _as_os_errors():
            self._make_room(name)
            self._files.pipe_file(self._path(name), content)

    def send(self, file: Path, name: str) -> None:
        """Write a file as one on this disk."""
        with _as_os_errors():
            self._make_room(name)
            self._files.put_file(str(file), self._path(name))

    def fetch(self, name: str, file: Path) -> None:
        """Copy a file to this disk. None is left where it fails."""
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with _as_os_errors():
                self._files.get_file(self._path(name), str(file))
        except OSError:
            file.unlink(missing_ok=True)
            raise

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with _as_os_errors(), suppress(FileNotFoundError):
            self._files.rm_file(self._path(name))

    def forget_folders(self) -> None:
        """Somebody has removed them: they are made again."""
        self._made.clear()

    def remove_folder(self, name: str) -> None:
        """Remove an empty folder, where there is such a thing."""
        self._made.discard(self._path(name))
        with suppress(OSError), _as_os_errors():
            self._files.rmdir(self._path(name))

    def age_s(self, name: str, newer: str) -> float:
        """How much older one file is than another, by the clock there."""
        with _as_os_errors():
            self._files.invalidate_cache()
            older, younger = (self._files.modified(self._path(file)) for file in (name, newer))
            return float((younger - older).total_seconds())

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _make_room(self, name: str) -> None:
        """Make the folders of a file, where there is such a thing."""
        folder = self._path(name).rpartition("/")[0]
        if folder not in self._made:
            self._make_folder(folder)
            self._made.add(folder)

    def _make_folder(self, path: str) -> None:
        try:
            self._files.mkdir(path, create_parents=False)
        except FileExistsError:
            pass
        except FileNotFoundError:
            above = path.rpartition("/")[0]
            # What has nothing above it is a bucket.
            if "/" not in above.strip("/"):
                raise
            self._make_folder(above)
            self._files.mkdir(path, create_parents=False)


@contextmanager
def _as_os_errors() -> Iterator[Any]:
    """Each library behind a URL has errors of its own, of credentials, of a web server's answers, of time-outs."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error
