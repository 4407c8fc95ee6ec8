"""The callbacks that watch a run, from a configuration."""

from __future__ import annotations

import pytest
import yaml

from rlhf_lightning.callbacks import default_callbacks
from rlhf_lightning.configfiles import find_config

WATCHING = [
    {"class_path": "KLBudget", "init_args": {"budget": 50.0, "action": "rollback"}},
    {"class_path": "HeldOutEval", "init_args": {"every": 2, "samples": 4, "best_of": [2, 4], "save_best": True}},
    {"class_path": "PlateauReport", "init_args": {"patience": 1, "tolerance": 0.5}},
    {"class_path": "SampleTable", "init_args": {"count": 1, "every": 2}},
]


@pytest.fixture
def config(folder, monkeypatch):
    monkeypatch.setattr("rlhf_lightning.callbacks.default_callbacks", default_callbacks)

    def write(callbacks, **changed):
        config = yaml.safe_load(find_config("tiny/grpo.yaml").read_text())
        config["trainer"] |= {"max_epochs": 3, "callbacks": callbacks}
        config["model"]["init_args"] |= changed
        (folder / "watched.yaml").write_text(yaml.safe_dump(config))
        return "watched.yaml"

    return write


def test_all_by_their_short_names(rlhf, folder, config):
    outcome = rlhf("fit", "--config", config(WATCHING))
    assert outcome.code == 0, outcome.err
    run = folder / "runs" / "watched"
    report = (run / "report.md").read_text()
    assert "## Plateau\n\nheld_out/accuracy stopped improving at rollout 0" in report
    assert "## Best checkpoint\n\ncheckpoints/best.ckpt holds the weights that made rollout" in report
    assert "Plateau: held_out/accuracy stopped improving" in outcome.out and "Samples of rollout 2" in outcome.out
    assert sorted(path.name for path in (run / "sample_tables").iterdir()) == [
        "rollout-000001.md",
        "rollout-000002.md",
    ]
    assert {"best.ckpt", "last.ckpt", "within_budget.ckpt"} <= {p.name for p in (run / "checkpoints").iterdir()}
    validated = rlhf("validate", "--config", "watched.yaml", f"--ckpt_path={run}/checkpoints/best.ckpt")
    assert validated.code == 0 and "held_out/accuracy" in validated.out


def test_a_budget_without_a_reference_is_one_line(rlhf, config):
    outcome = rlhf("fit", "--config", config(WATCHING[:1], kl_loss=None))
    assert outcome.code != 0
    assert "KLBudget: GRPOModule measures no KL to a reference: give it a kl_loss" in outcome.error
