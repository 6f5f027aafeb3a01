"""What the site has beside the pages in docs/: Markdown files of the root, the commands' help, the API's docstrings."""

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import distbelief as db
from distbelief import errors
from distbelief.cli.commands import main
from distbelief.run.callbacks import LiveRun
from distbelief.run.run import Run

ROOT = Path(__file__).resolve().parents[1]
FROM_ROOT = ("README.md", "ARCHITECTURE.md", "PAPER.md", "GUARANTEES.md", "CHANGELOG.md")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files of the root. They and the pages become neighbours, README.md the index."""
    for name in FROM_ROOT:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in the help and the API, and mend links: in the repository they lead from the root into docs/ and back."""
    for mark, text in (("<!-- help -->", _help), ("<!-- api -->", api)):
        markdown = markdown.replace(mark, text()) if mark in markdown else markdown
    return re.sub(r"\]\((docs/|\.\./)", "](", markdown)


def _help() -> str:
    parts = []
    with click.Context(main, info_name="distbelief") as root:
        for name, command in sorted(main.commands.items()):
            with click.Context(command, info_name=name, parent=root, max_content_width=80) as context:
                parts.append(f"### distbelief {name}\n\n```text\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)


def api() -> str:
    """The reference: every public name with its signature and docstring, then the ready-made tasks and the errors."""
    # The errors are told of together, at the end.
    things = {f"db.{name}": getattr(db, name) for name in db.__all__ if name not in ("tasks", "DistBeliefError")}
    things["LiveRun"] = LiveRun
    things |= {f"db.tasks.{task.__name__}": task for task in db.tasks.TASKS.values()}
    parts = [part for name, thing in things.items() for part in _entry(name, thing)]
    parts.append("## Errors\n\n```text\n" + inspect.cleandoc(errors.__doc__ or "") + "\n```\n")
    return "\n".join(parts)


def _entry(name: str, thing: Any) -> Iterator[str]:
    yield f"## {name}\n\n{_signature(name, thing)}{inspect.getdoc(thing) or ''}\n"
    # What a run can be asked; the methods of other values are for engines.
    for member, found in vars(thing).items() if thing in (Run, LiveRun) else ():
        function = found.fget if isinstance(found, property) else getattr(found, "__func__", found)
        if member.startswith("_") or not inspect.isfunction(function) or not function.__doc__:
            continue
        signature = "" if isinstance(found, property) else _signature(member, function)
        yield f"### {name.rpartition('.')[2]}.{member}\n\n{signature}{inspect.cleandoc(function.__doc__)}\n"


def _signature(name: str, thing: Callable[..., Any]) -> str:
    found = [parameter for parameter in inspect.signature(thing).parameters.values() if parameter.name != "self"]
    parameters = [str(parameter) for parameter in found]
    if inspect.Parameter.KEYWORD_ONLY in (kinds := [parameter.kind for parameter in found]):
        parameters.insert(kinds.index(inspect.Parameter.KEYWORD_ONLY), "*")
    joined = ", ".join(parameters)
    body = joined if len(name) + len(joined) < 80 else "\n    " + ",\n    ".join(parameters) + ",\n"
    # Where a type is defined is of no use to a reader.
    told = re.sub(
        r"\b(?:distbelief|torch|collections|pathlib|typing)(?:\.\w+)*\.(?=[A-Z])", "", f"{name}({_unquoted(body)})"
    )
    return f"```text\n{told}\n```\n\n"


def _unquoted(parameters: str) -> str:
    """Parameters whose annotations are no texts, and whose defaults that are made anew are an ellipsis."""
    return re.sub(r": (['\"])(.*?)\1(?=[,\n]| =|$)", r": \2", parameters).replace("<factory>", "…")
