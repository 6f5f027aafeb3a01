"""Where the source lies, and which part of it is pure."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "distbelief"

PURE = ("chance", "errors", "ports", "model", "server", "downpour", "sandblaster")
"""Modules and folders that know no cluster, clock, process, file or chance."""


def modules(under: Path = SOURCE) -> list[Path]:
    """Every Python file below a folder, in order."""
    return sorted(under.rglob("*.py"))


def pure_modules() -> list[Path]:
    """The files of the pure part."""
    return [path for path in modules() if path.relative_to(SOURCE).with_suffix("").parts[0] in PURE]


def name(path: Path) -> str:
    """How a complaint calls a file."""
    return str(path.relative_to(ROOT))
