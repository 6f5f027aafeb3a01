"""What the site is made of beside the pages in docs/: the Markdown files of the root, and what commands print."""

import re
from pathlib import Path

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from distbelief.cli.commands import main

ROOT = Path(__file__).resolve().parents[1]
FROM_ROOT = ("README.md", "ARCHITECTURE.md", "PAPER.md", "GUARANTEES.md", "CHANGELOG.md")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files of the root. They and the pages become neighbours, README.md the index."""
    for name in FROM_ROOT:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in the help, and mend links: in the repository they lead from the root into docs/ and back."""
    return re.sub(r"\]\((docs/|\.\./)", "](", markdown.replace("<!-- help -->", _help()))


def _help() -> str:
    parts = []
    with click.Context(main, info_name="distbelief") as root:
        for name, command in sorted(main.commands.items()):
            with click.Context(command, info_name=name, parent=root, max_content_width=80) as context:
                parts.append(f"### distbelief {name}\n\n```text\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)
