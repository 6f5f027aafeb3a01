"""What a pure module must not do, found in its syntax tree.

import-linter sees what a module imports, through any number of steps; this sees what it calls.
"""

import ast
from collections.abc import Iterator

IMPURE = frozenset(
    """asyncio.subprocess click cloudpickle concurrent ctypes datetime fcntl io logging mmap multiprocessing
    numpy.random os pathlib pickle random ray rich secrets select selectors shutil signal socket subprocess sys
    tempfile threading time torch.default_generator torch.distributed torch.multiprocessing torch.random uuid
    warnings zmq""".split()
)

IMPURE_CALLS = frozenset(
    """asyncio.create_subprocess_exec asyncio.create_subprocess_shell asyncio.new_event_loop asyncio.open_connection
    asyncio.open_unix_connection asyncio.run asyncio.start_server asyncio.start_unix_server asyncio.to_thread
    numpy.fromfile numpy.load numpy.memmap numpy.save numpy.savez torch.from_file torch.load torch.save torch.seed
    torch.manual_seed torch.set_num_threads torch.set_rng_state""".split()
)

IMPURE_BUILTINS = {
    "breakpoint": "stops the process",
    "eval": "runs text",
    "exec": "runs text",
    "hash": "differs from process to process",
    "input": "reads the terminal",
    "open": "opens a file",
    "print": "prints",
}

# torch.nn.init is missing on purpose: layers are made under the task's seed, as torch's own are.
DRAWS = frozenset(
    f"torch.{name}"
    for name in """bernoulli multinomial normal poisson rand rand_like randint randint_like randn randn_like
    randperm""".split()
)
DRAWS_IN_PLACE = frozenset("bernoulli_ cauchy_ exponential_ geometric_ log_normal_ normal_ random_ uniform_".split())


def violations(text: str) -> list[str]:
    """Each breach of purity in a module's text, as `line: reason`."""
    tree = ast.parse(text)
    names = _imported_names(tree)
    found = {(getattr(node, "lineno", 0), reason) for node in ast.walk(tree) for reason in _breaches(node, names)}
    return [f"{line}: {reason}" for line, reason in sorted(found)]


def _imported_names(tree: ast.Module) -> dict[str, str]:
    """What each imported name stands for: `import numpy as np` gives np → numpy."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                bound = alias.asname or alias.name.partition(".")[0]
                names[bound] = alias.name if alias.asname else bound
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _breaches(node: ast.AST, names: dict[str, str]) -> Iterator[str]:
    match node:
        case ast.Import():
            yield from (f"imports {a.name}" for a in node.names if _is_impure(a.name))
        case ast.ImportFrom(module=str(module), level=0):
            paths = [f"{module}.{alias.name}" for alias in node.names]
            yield from (f"imports {path}" for path in paths if _is_impure(path))
        case ast.Attribute() if (path := _path(node, names)) in IMPURE:
            yield f"reaches {path}"
        case ast.Global():
            yield "changes a global"
        case ast.ExceptHandler(type=kind) if _is_broad(kind):
            yield "catches everything"
        case ast.Call():
            yield from _breaches_of_call(node, names)


def _breaches_of_call(call: ast.Call, names: dict[str, str]) -> Iterator[str]:
    path = _path(call.func, names)
    seeded = any(keyword.arg == "generator" for keyword in call.keywords)
    if isinstance(call.func, ast.Name) and path in IMPURE_BUILTINS:
        yield f"{path}() {IMPURE_BUILTINS[path]}"
    if path in IMPURE_CALLS:
        yield f"calls {path}"
    if path in DRAWS and not seeded:
        yield f"{path} draws without a generator"
    if isinstance(call.func, ast.Attribute) and not seeded:
        if call.func.attr in DRAWS_IN_PLACE and not path.startswith("torch.nn.init."):
            yield f".{call.func.attr} draws without a generator"
        if call.func.attr == "run_in_executor":
            yield "starts a thread"


def _path(node: ast.expr, names: dict[str, str]) -> str:
    """The dotted name that an expression reads, with aliases resolved; empty if it is not a name."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute) and (owner := _path(node.value, names)):
        return f"{owner}.{node.attr}"
    return ""


def _is_impure(path: str) -> bool:
    parts = path.split(".")
    return any(".".join(parts[:length]) in IMPURE for length in range(1, len(parts) + 1))


def _is_broad(kind: ast.expr | None) -> bool:
    kinds = kind.elts if isinstance(kind, ast.Tuple) else [kind]
    return any(k is None or (isinstance(k, ast.Name) and k.id in ("Exception", "BaseException")) for k in kinds)
