"""docs/equations.md names functions and tests that exist, and every public name of ``rlhf_lightning.functional``."""

import ast
import importlib
import re
from pathlib import Path

import pytest

from rlhf_lightning import functional

ROOT = Path(__file__).parent.parent
TABLE = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in (ROOT / "docs" / "equations.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| ")
][1:]
NAMES = {re.sub("`", "", row[2]) for row in TABLE}
TESTS = {re.sub("`", "", row[3]) for row in TABLE}


def test_every_row_has_four_cells():
    assert [row for row in TABLE if len(row) != 4 or not all(row)] == []


@pytest.mark.parametrize("name", sorted(NAMES))
def test_named_functions_exist(name: str):
    module, _, attribute = name.rpartition(".")
    assert hasattr(importlib.import_module(module), attribute)


@pytest.mark.parametrize("test_id", sorted(TESTS))
def test_named_tests_exist(test_id: str):
    path, *names = test_id.split("::")
    node: ast.AST = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    for name in names:
        body = getattr(node, "body", [])
        found = [n for n in body if isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name == name]
        assert len(found) == 1, f"{name} is not in {path}"
        node = found[0]
    assert isinstance(node, ast.FunctionDef)
    assert node.name.startswith("test_")


def test_every_public_name_is_in_the_table():
    listed = {name.rpartition(".")[2] for name in NAMES if name.startswith("rlhf_lightning.functional.")}
    assert set(functional.__all__) == listed


def test_every_public_function_of_its_modules_is_exported():
    folder = Path(functional.__file__).parent
    public = {
        node.name
        for path in folder.glob("[a-z]*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    }
    assert public <= set(functional.__all__)
