"""The blocks of code in a page of the documentation.

1. ```python and ```sh blocks are run, in the order of the page, in one process and one namespace, in a folder of their
   own. A python block with a title is a file instead: it is written there before, and a sh block of the page runs it.
2. ```console blocks show what a person does by hand: their `distbelief …` commands must parse.
3. <!-- not run: WHY --> directly before a block exempts it, with a reason.
4. Other kinds (text, json) show what is printed or written.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

from tests.architecture.source import ROOT

KINDS = ("python", "sh", "console", "text", "json")
_EXEMPT = re.compile(r"<!-- not run: (\S.*?) -->", re.DOTALL)
_TITLE = re.compile(r'title="([^"]+)"')


@dataclass(frozen=True)
class Block:
    """A fenced block, and the line of its page on which its first line of code stands, counted from 1."""

    page: Path
    line: int
    kind: str
    title: str | None
    text: str
    exempt: str | None
    """Why it is not run."""

    @property
    def place(self) -> str:
        """For complaints."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def commands(self) -> list[list[str]]:
        """The commands of a block of shell, split; prompts, continued lines and comments apart."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line.removeprefix("$ "), comments=True))]


def pages() -> list[Path]:
    """Every page that is meant to be read by users."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page, in order."""
    exempt = None
    for token in MarkdownIt().parse(page.read_text()):
        if token.type == "html_block":
            found = _EXEMPT.fullmatch(token.content.strip())
            exempt = found[1] if found else None
        elif token.type == "fence":
            assert token.map is not None
            kind, _, rest = token.info.partition(" ")
            title = _TITLE.search(rest)
            yield Block(page, token.map[0] + 2, kind, title[1] if title else None, token.content, exempt)
            exempt = None
        elif token.nesting >= 0:
            exempt = None
