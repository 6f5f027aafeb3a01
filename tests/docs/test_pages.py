"""The documentation does what it says: its code runs, its commands parse, its tables are those of the code."""

import importlib.util
import json
import os
import re
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import yaml  # type: ignore[import-untyped]

import distbelief as db
from distbelief import errors
from distbelief.cli.commands import main
from distbelief.engines.ray.cluster import SPOT
from distbelief.observe import events as events_module
from tests import problems
from tests.architecture.source import ROOT
from tests.docs.blocks import KINDS, Block, blocks, pages
from tests.lives import complete

ALL = [block for page in pages() for block in blocks(page)]
PLAYED = [page for page in pages() if any(b.kind in ("python", "sh") and not b.exempt for b in blocks(page))]
# Trackers write into the page's folder and reach for no network.
OFFLINE = {"WANDB_MODE": "offline", "MLFLOW_TRACKING_URI": "file:mlruns", "MLFLOW_ALLOW_FILE_STORE": "true"}
# A script that initialises torch.distributed finds itself the only process of its group, as torchrun would tell it.
ALONE = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}


@pytest.mark.parametrize("page", PLAYED, ids=lambda page: page.stem)
def test_the_code_of_a_page_runs(page: Path, tmp_path: Path) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {**ALONE, **OFFLINE, "PATH": path, "PYTHONPATH": str(ROOT / "src")}
    found = complete(["-m", "tests.docs.play", str(page)], cwd=tmp_path, env=env)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize("block", [b for b in ALL if b.kind in ("console", "sh")], ids=lambda b: b.place)
def test_commands_parse(block: Block) -> None:
    for words in block.commands:
        if words[0] == "distbelief":
            parse(words[1:])


def parse(words: list[str]) -> None:
    """Read a command as distbelief would, without running it. Raises what click raises."""
    with main.make_context("distbelief", list(words)) as context:
        _, command, rest = main.resolve_command(context, [*context._protected_args, *context.args])
        assert command is not None
        command.make_context(words[0], rest, parent=context)


def test_the_job_for_kubernetes_parses() -> None:
    job = yaml.safe_load((ROOT / "examples" / "kuberay.yaml").read_text())
    _, *words = shlex.split(job["spec"]["entrypoint"])
    parse(words)
    [spot] = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert spot["labels"] == {SPOT[0]: SPOT[1]}


def test_a_wrong_flag_is_seen() -> None:
    parse(["train", "digits", "--epochs", "2"])
    with pytest.raises(click.UsageError):
        parse(["train", "digits", "--epoch-count", "2"])
    with pytest.raises(click.UsageError):
        parse(["learn", "digits"])


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.stem)
def test_every_block_says_what_it_is(page: Path) -> None:
    wrong = [block.place for block in blocks(page) if block.kind not in KINDS]
    shell = "".join(block.text for block in blocks(page) if block.kind == "sh" and not block.exempt)
    unused = [b.place for b in blocks(page) if b.title and not b.exempt and b.title not in shell]
    assert (wrong, unused) == ([], [])


def test_the_run_directory_is_documented(tmp_path: Path) -> None:
    """The page has a row for every field of the summary, and every event and field that a run writes."""

    def end_the_first(event: dict[str, Any], run: object) -> None:
        if event["event"] == "replica" and event["incarnation"] == 1:
            os.kill(event["pid"], signal.SIGKILL)

    run = db.train(
        problems.task(test=problems.points()),
        db.Downpour(replicas=1, batch_size=16),
        until=db.Until(epochs=1),
        directory=tmp_path,
        resume=True,
        callbacks=[end_the_first],
        progress=False,
    )
    summary, events = (ROOT / "docs" / "run-directory.md").read_text().split("\n## ")[1:]
    assert json.loads((tmp_path / "summary.json").read_text()) == run.summary
    assert {name for first, *_ in rows(summary) for name in names(first)} == run.summary.keys()
    documented = {names(first)[0]: set(names(second)) for first, second, *_ in rows(events)}
    assert documented.keys() == set(re.findall(r"^    (\w+) {2,}", events_module.__doc__ or "", re.MULTILINE))
    for line in (tmp_path / "events.jsonl").read_text().splitlines():
        event = json.loads(line)
        metrics = run.metrics.keys() if event["event"] == "evaluation" else set()
        assert event.keys() - metrics - {"event", "seconds"} == documented[event["event"]], event


def rows(text: str) -> list[list[str]]:
    """The rows of a page's tables, without their heads, as cells."""
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def names(cell: str) -> list[str]:
    """What stands between backticks."""
    return re.findall(r"`(\w+)`", cell)


def test_the_reference_has_every_public_name() -> None:
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None and spec.loader is not None
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    text = hooks.api()
    public = [f"## db.{name}\n" for name in db.__all__ if name not in ("tasks", "DistBeliefError")]
    raised = [name for name, kind in vars(errors).items() if isinstance(kind, type)]
    assert [name for name in public + raised if name not in text] == []
    assert not re.search(r"object at 0x|<class|<factory>", text)
