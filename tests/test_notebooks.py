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
    CHECKS[path.stem](namespace)


def check_the_flow(namespace):
    assert namespace["batch"].packed.input_ids.numel() < namespace["separately"] < namespace["padded"]
    ratio = namespace["diagnostics"]["ratio/mean"][namespace["batch"].packed.mask]
    assert ratio.sub(1).abs().max() < 1e-4


def check_metrics_explorer(namespace):
    """Tokens join to the responses, and their log-ratios to the KL that was logged of the whole rollout."""
    for run in namespace["runs"]:
        by_sample = run.tokens.groupby("sample")
        assert by_sample["token"].sum().tolist() == run.samples["response"].tolist()
        kl = by_sample["log_ratio"].sum().groupby(run.samples["rollout"]).mean()
        logged = run.metrics.set_index("rollout")["kl/ref_k1_per_sequence"].dropna()
        assert kl.tolist() == pytest.approx(logged.tolist(), rel=1e-4, abs=1e-5) and kl.max() > 0.1
    assert "value" in namespace["ppo"].tokens and "value" not in namespace["grpo"].tokens
    assert namespace["page"].html.count("<pre") == 4


CHECKS = {"the_flow": check_the_flow, "metrics_explorer": check_metrics_explorer}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_committed_without_outputs(path):
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code_cells(path))
