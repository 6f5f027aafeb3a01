"""A long measurement's runs, kept on disk as they end, so that one that is interrupted goes on where it was."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, final

from rich.console import Console


@final
class Journal:
    """Runs by name. What is kept of other settings is forgotten; `total` is only for the eye."""

    def __init__(self, path: Path, settings: Mapping[str, Any], total: int) -> None:
        kept = json.loads(path.read_text()) if path.exists() else {}
        # As they will be read: tuples are lists then.
        self._settings = json.loads(json.dumps(settings))
        self.runs: dict[str, Any] = kept["runs"] if kept.get("settings") == self._settings else {}
        self._path = path
        self._total = total
        self._console = Console()
        if self.runs:
            self._console.print(f"going on after {len(self.runs)} of {total} runs, kept in {path}")

    def once(self, name: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What a run of this name brought: then, or now."""
        if name not in self.runs:
            began = time.monotonic()
            found = run()
            self.keep(name, found, f", {time.monotonic() - began:.0f} s")
        kept: dict[str, Any] = self.runs[name]
        return kept

    def keep(self, name: str, found: dict[str, Any], remark: str = "") -> None:
        """Write down what a run brought."""
        self.runs[name] = found
        self._write()
        self._console.print(f"{len(self.runs)} of {self._total}: {name}{remark}", style="dim")

    def close(self) -> None:
        """Forget all that was kept: the measurement is complete."""
        self._path.unlink(missing_ok=True)

    def _write(self) -> None:
        self._path.parent.mkdir(exist_ok=True)
        partial = self._path.with_name(f".{self._path.name}")
        partial.write_text(json.dumps({"settings": self._settings, "runs": self.runs}))
        partial.replace(self._path)
