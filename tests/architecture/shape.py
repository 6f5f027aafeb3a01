"""How large and how plain the source is, found in its text."""

import ast
import io
import tokenize
from collections.abc import Iterator

LONGEST_FUNCTION = 60
LONGEST_PURE_MODULE = 300

_SILENT = frozenset(
    (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def long_functions(text: str) -> list[str]:
    """The functions that do not fit a screen."""
    lengths = ((node, (node.end_lineno or node.lineno) - node.lineno + 1) for node in _functions(text))
    return [
        f"{node.lineno}: {node.name} has {length} lines, more than {LONGEST_FUNCTION}"
        for node, length in lengths
        if length > LONGEST_FUNCTION
    ]


def unsafe_reads(text: str, *, pickle_allowed: bool, cloudpickle_allowed: bool) -> list[str]:
    """Where reading a file, or a message, may run the code that is in it."""
    refused = {"dill", "joblib", "marshal", "shelve"}
    refused |= set() if pickle_allowed else {"pickle"}
    refused |= set() if cloudpickle_allowed else {"cloudpickle"}
    found = []
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Import():
                found += [f"{node.lineno}: imports {a.name}" for a in node.names if a.name.split(".")[0] in refused]
            case ast.ImportFrom(module=str(module), level=0) if module.split(".")[0] in refused:
                found.append(f"{node.lineno}: imports {module}")
            case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr="load")):
                if not _has(node, "weights_only", True):
                    found.append(f"{node.lineno}: torch.load without weights_only=True")
            case ast.Call() if _has(node, "allow_pickle", True):
                found.append(f"{node.lineno}: allow_pickle=True")
    return found


def does_something(text: str) -> bool:
    """Whether a module holds a function with a body: constants, protocols and errors have nothing to test."""
    return any(not _is_silent(statement) for node in _functions(text) for statement in node.body)


def code_lines(text: str) -> int:
    """Lines that hold code. Comments, docstrings and blank lines are free: nobody should save on reasons."""
    docstrings = {
        line
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Expr) and _is_text(node.value)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    lines = {line for t in tokens if t.type not in _SILENT for line in range(t.start[0], t.end[0] + 1)}
    return len(lines - docstrings)


def _functions(text: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(ast.parse(text)) if isinstance(node, _FUNCTIONS))


def _has(call: ast.Call, keyword: str, value: object) -> bool:
    return any(k.arg == keyword and isinstance(k.value, ast.Constant) and k.value.value is value for k in call.keywords)


def _is_silent(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Pass) or (
        isinstance(statement, ast.Expr) and (_is_text(statement.value) or ast.unparse(statement) == "...")
    )


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)
