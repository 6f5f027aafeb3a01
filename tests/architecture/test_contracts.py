"""The contracts that import-linter reads cover what there is to cover."""

import tomllib
from typing import Any

from tests.architecture.purity import IMPURE
from tests.architecture.source import PURE, ROOT, SOURCE

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONTRACTS: list[dict[str, Any]] = PROJECT["tool"]["importlinter"]["contracts"]


def contract_of(kind: str, **fields: object) -> dict[str, Any]:
    (found,) = [c for c in CONTRACTS if c["type"] == kind and all(c.get(k) == v for k, v in fields.items())]
    return found


PURITY = contract_of("forbidden", name="The algorithms know no cluster, clock, process, file or chance")


def test_every_pure_part_is_under_contract() -> None:
    covered = {source.removeprefix("distbelief.").removesuffix(".*") for source in PURITY["source_modules"]}
    assert covered == set(PURE)


def test_a_folder_is_covered_whole_and_a_module_by_its_name() -> None:
    """A wildcard that matches nothing is silent: a module covered as a folder would go unchecked."""
    for source in PURITY["source_modules"]:
        path = SOURCE.joinpath(*source.removeprefix("distbelief.").removesuffix(".*").split("."))
        assert not (path.is_dir() and not source.endswith(".*")), source
        assert not (path.with_suffix(".py").exists() and source.endswith(".*")), source


def test_the_linter_and_the_syntax_check_forbid_the_same() -> None:
    """import-linter knows other packages by their first name only."""
    assert set(PURITY["forbidden_modules"]) == {module for module in IMPURE if "." not in module}


def test_every_part_has_its_layer() -> None:
    assert contract_of("layers")["exhaustive"] is True
