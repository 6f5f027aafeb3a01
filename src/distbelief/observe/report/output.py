"""Where a report is written: one page, and its pictures as files in a folder beside it.

Only files of an earlier report are replaced.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from distbelief.errors import UsageError
from distbelief.observe.report.record import read_records

MARK = "distbelief report"
"""Stands in every file of a report, so that one report replaces another, and nothing else."""
_HEAD = 1000
"""Bytes in which every file of a report says that it is one."""


def write_report(directories: Sequence[str | Path], output: Path | None = None) -> Path:
    """Write a report about runs, and return where. Without `output`: beside the run, or where we are.

    Raises `UsageError` where it cannot be drawn or written, `DirectoryError` where there is no run, or a damaged one.
    """
    try:
        import matplotlib as _  # noqa: F401

        from distbelief.observe.report import page as pages
        from distbelief.observe.report.picture import style
    except ImportError as error:
        raise UsageError("a report needs matplotlib and jinja2: pip install matplotlib jinja2") from error
    records = read_records(directories)
    beside = records[0].directory if len(records) == 1 else None
    page = output or (beside if isinstance(beside, Path) else Path()) / "report.html"
    folder = page.with_suffix("")
    _check_place(page, folder)
    with style():
        made = pages.page_of(records, folder.name)
        files = {folder / name: picture.png for name, picture in made.pictures.items()}
    _put(folder, files | {page: made.html.encode(errors="replace")})
    return page


def _check_place(page: Path, folder: Path) -> None:
    """Before the work of drawing is done: whether there will be a place for it."""
    if page.is_dir():
        raise UsageError(f"{page} is a folder: name a file in it, such as {page / 'report.html'}")
    if page.suffix not in (".html", ".htm"):
        raise UsageError(f"{page} must end in .html: its pictures are written to a folder of the same name without it")
    if not page.parent.is_dir():
        raise UsageError(f"there is no folder {page.parent} to write {page.name} to")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"the pictures of {page} would go to the folder {folder}, which is a file: name another page")


def _put(folder: Path, files: Mapping[Path, bytes]) -> None:
    """Write files, the last of them when the others are there. Raises `UsageError` where one cannot be written."""
    path = folder
    try:
        for path in filter(Path.exists, files):
            with path.open("rb") as file:
                if MARK.encode() not in file.read(_HEAD):
                    raise UsageError(f"{path} is there already, and no part of a report: name another page")
        path = folder
        folder.mkdir(exist_ok=True)
        for path, content in files.items():
            path.write_bytes(content)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}; name another place with --output") from error
