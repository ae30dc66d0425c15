"""Imports go downwards and never in a circle; the order of packages and modules stands in pyproject.toml."""

import tomllib
from pathlib import Path

import grimp
import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).parents[3]
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]


@pytest.mark.parametrize("contract", [contract["id"] for contract in CONTRACTS])
def test_imports_keep_the_contract(contract, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    broken = lint_imports(config_filename="pyproject.toml", limit_to_contracts=(contract,), no_cache=True, no_logo=True)
    assert not broken, capsys.readouterr().out


def test_no_import_and_no_module_is_left_out():
    keys = {key for contract in CONTRACTS for key in contract}
    assert keys == {"id", "name", "type", "containers", "exhaustive", "layers", "ancestors"}
    assert {contract["type"] for contract in CONTRACTS} == {"layers", "acyclic_siblings"}
    assert next(contract for contract in CONTRACTS if contract["type"] == "layers")["exhaustive"] is True


def test_imports_within_functions_and_for_types_count(tmp_path, monkeypatch):
    package = tmp_path / "towered"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "below.py").write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from towered.above import Named\n"
        "def late():\n    from towered import top\n    return top\n"
    )
    for name in ("above", "top"):
        (package / f"{name}.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    graph = grimp.build_graph("towered", cache_dir=None)
    assert graph.find_modules_directly_imported_by("towered.below") == {"towered.above", "towered.top"}
