"""Every notebook runs from top to bottom, and is committed without outputs."""

import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


def code_cells(path: Path) -> list[dict]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_runs_from_top_to_bottom(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    for cell in code_cells(path):
        exec(compile("".join(cell["source"]), path.name, "exec"), namespace)
    if path.stem == "the_flow":
        assert namespace["batch"].packed.input_ids.numel() < namespace["separately"] < namespace["padded"]
        ratio = namespace["diagnostics"]["ratio/mean"][namespace["batch"].packed.mask]
        assert ratio.sub(1).abs().max() < 1e-4


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_committed_without_outputs(path):
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code_cells(path))
