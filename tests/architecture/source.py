"""Where the source lies, and which part of it is pure."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "distbelief"

PURE = (
    "chance",
    "errors",
    "ports",
    "allocation",
    "model",
    "server",
    "downpour",
    "sandblaster",
    "engines.actions",
    "engines.controller",
    "engines.due",
    "engines.outstanding",
    "engines.replica_slot",
    "engines.stopwatch",
    "engines.supervision",
)
"""Modules and folders that know no cluster, clock, process, file or chance."""


def modules(under: Path = SOURCE) -> list[Path]:
    """Every Python file below a folder, in order."""
    return sorted(under.rglob("*.py"))


def pure_modules() -> list[Path]:
    """The files of the pure part."""
    return [path for path in modules() if _is_pure(".".join(path.relative_to(SOURCE).with_suffix("").parts))]


def _is_pure(module: str) -> bool:
    return any(module == pure or module.startswith(f"{pure}.") for pure in PURE)


def name(path: Path) -> str:
    """How a complaint calls a file."""
    return str(path.relative_to(ROOT))
