"""The plug-ins that CONTRIBUTING.md and docs/architecture.md show, written down and run as they stand there."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]


def shown(page: str, language: str = "python") -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Writes a page's Python to files: each block under the name in its first line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    blocks = {re.match(r"# (\w+)\.py", block)[1]: block for block in shown("docs/architecture.md")}
    blocks["my_package"] = shown("CONTRIBUTING.md")[0]
    for name, text in blocks.items():
        Path(f"{name}.py").write_text(text)
    importlib.invalidate_caches()
    return tmp_path


def test_what_is_shown_keeps_its_contract(written):
    code = """
from my_estimator import MeanOfAll
from my_loss import Doubtful, WithDoubt
from my_package import Square
from rlhf_lightning.samplers import InProcessSampler
from rlhf_lightning.testing import check_plugin

for report in (
    check_plugin(Square),
    check_plugin(MeanOfAll),
    check_plugin(Doubtful),
    check_plugin(WithDoubt, make=lambda: WithDoubt(InProcessSampler(max_new_tokens=8))),
):
    report.raise_on_failure()
    print(report.kind)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=written, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["reward_transform", "advantage", "policy_loss", "sampler"]


def test_the_loss_trains_on_its_new_tensor(written):
    (settings,) = shown("docs/architecture.md", "yaml")
    (written / "mine.yaml").write_text(settings)
    small = ["--model.prompts_per_rollout=4", "--model.samples_per_prompt=4", "--model.updates_per_rollout=1"]
    words = ["fit", "--config", "quickstart.yaml", "--config", "mine.yaml", "--trainer.max_epochs=1", "--run.name=mine"]
    run = subprocess.run(
        [sys.executable, "-m", "rlhf_lightning.cli", *words, *small, "--model.advantage=my_estimator.MeanOfAll"],
        capture_output=True,
        text=True,
        cwd=written,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(written), *sys.path])},
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    metrics = pd.read_csv(written / "runs" / "mine" / "metrics.csv")
    (doubt,) = metrics["loss/doubt"].dropna()
    assert 0 < doubt < 1
