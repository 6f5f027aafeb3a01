"""Every refusal has a way out: what to write, to give or to do instead."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.architecture.source import modules, name

REFUSALS = {"UsageError", "TaskError", "DataError", "DirectoryError"}
ALTERNATIVES = (
    r"\b(must|needs?|takes?|such as|one of|none of|it has|instead|between|there (is|are)|at most|or more)\b|, not \{"
)
VERBS = """
add ask begin build call choose compute define do draw end free freeze give go have install keep leave load look lower
make mend move name open pass pip put raise register reinstall remove return run say see set start train try unset
update use wait write
""".split()
WAY_OUT = re.compile(rf"{ALTERNATIVES}|[:;,.] (or |and |then )?({'|'.join(VERBS)})\b", re.IGNORECASE)
PASSED_ON = {
    "{}",
    "{}: {}",
    "{}{}",
    "--admission {} cannot be: {}",
    "in the group {}: {}",
    '{} defines nothing named "{}"{}',
    "the run cannot go on with batches of {} examples: {}",
    "parameter {} is of {}, which cannot be trained: {}",
    "{}: its loader's sampler, a {}, cannot be kept: the run gives each replica its examples; {}",
}
"""What is put in says what to do: a sentence of another error, which is held to the same, or one beside it."""


def refusals(text: str) -> Iterator[tuple[int, str]]:
    """The line and the message of each refusal; what is put in at run time is {}."""
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Raise(exc=ast.Call(func=ast.Name(id=kind), args=[message, *_])) if kind in REFUSALS:
                yield node.lineno, written(message)


def written(node: ast.expr) -> str:
    """A text as far as it is known."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=values):
            return "".join(written(value) for value in values)
        case ast.FormattedValue():
            return "{}"
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return written(left) + written(right)
        case ast.Call(func=ast.Attribute(value=value)):
            return written(value)
    return "{}"


@pytest.mark.parametrize("path", modules(), ids=name)
def test_a_refusal_says_what_to_do_instead(path: Path) -> None:
    text = path.read_text()
    without = [
        (line, message)
        for line, message in refusals(text)
        if message not in PASSED_ON and WAY_OUT.search(message) is None
    ]
    assert without == []


def test_a_refusal_without_a_way_out_is_seen() -> None:
    (found,) = refusals('raise UsageError(f"{name} cannot be")')
    assert found == (1, "{} cannot be")
    assert WAY_OUT.search("{} cannot be") is None
    assert WAY_OUT.search("there is no folder {}: name another") is not None
