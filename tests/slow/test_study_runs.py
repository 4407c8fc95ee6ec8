"""A small study for real: its commands run, what is finished stays, and the report holds what the runs measured."""

import pandas as pd
import pytest
import yaml

from rlhf_lightning.cli import main
from rlhf_lightning.runs import load_run

pytestmark = pytest.mark.slow

STUDY = {
    "job": "study run",
    "folder": "small",
    "axes": {
        "samples": [2, 4],
        "algorithm": {
            "PPO": {
                "grid": {"config": "tiny/ppo_orm.yaml", "model.critic": {"name": "reward-model", "path": "{rm}"}},
            },
            "GRPO": {"grid": {"config": "tiny/grpo_orm.yaml"}},
        },
    },
    "parts": {
        "rm": {
            "command": "fit",
            "options": {
                "config": "tiny/orm.yaml",
                "trainer.max_epochs": 1,
                "model.updates_per_epoch": 2,
                "data.sources": [{"name": "solutions", "path": "{pool}"}],
            },
            "gives": "reward_model",
        },
        "pool": {
            "command": "sample",
            "options": {"config": "tiny/sample.yaml", "prompts": 16, "samples": 4, "split": "held_out"},
            "gives": "pool.jsonl",
        },
        "promised": {
            "command": "best-of-n",
            "role": "best_of_n",
            "options": {"pools": {"SFT": "{pool}"}, "reward_models": {"RM": "{rm}"}},
        },
        "grid": {
            "command": "fit",
            "role": "policy",
            "over": ["algorithm", "samples"],
            "options": {
                "model.scorers": [{"name": "reward_model", "path": "{rm}"}, "verifier"],
                "model.scorer_weights": [1.0, 0.0],
                "model.samples_per_prompt": "{samples}",
                "model.prompts_per_rollout": 8,
                "trainer.max_epochs": 2,
                "trainer.callbacks": [{"class_path": "HeldOutEval", "init_args": {"every": 1}}],
            },
        },
    },
}


def test_from_nothing_to_the_report(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(STUDY))
    assert main(["study", "run", "--config", "small.yaml", "--only=[grid/*PPO*]"]) == 0
    assert sorted(path.name for path in (tmp_path / "small" / "state" / "grid").iterdir()) == [
        "algorithm-PPO_samples-2.json",
        "algorithm-PPO_samples-4.json",
    ]
    capsys.readouterr()
    assert main(["study", "run", "--config", "small.yaml"]) == 0
    made = [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("made: ")]
    # The reward model that PPO begins its critic from learned from the pool, so both were made the first time.
    assert sorted(made) == ["grid/algorithm-GRPO_samples-2", "grid/algorithm-GRPO_samples-4", "promised"]
    policies = pd.read_csv(tmp_path / "small" / "report" / "policies.csv").set_index("piece")
    for name in ("grid/algorithm-PPO_samples-4", "grid/algorithm-GRPO_samples-2"):
        measured = load_run(tmp_path / "small" / name).column("held_out/accuracy").dropna()
        assert len(measured) == 3
        assert policies.loc[name, "start"] == measured.iloc[0]
        assert policies.loc[name, "final"] == measured.iloc[-1]
    text = (tmp_path / "small" / "report" / "report.md").read_text()
    for name in ("compute", "figure_1_left", "figure_3", "figure_4", "figure_5"):
        assert f"({name}.png)" in text
    assert "samples 2 → 4" in text
    assert "| 4 | GRPO | " in text
