"""``rlhf fit`` on two ranks, which Lightning starts, beside one process: one folder, the same rows."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SAME = ("reward/raw_mean", "held_out/accuracy", "held_out/length_mean", "loss/policy", "grad_norm/policy")


def fit(root: Path, name: str, *words: str) -> Path:
    """Runs the shipped example for one rollout; its folder."""
    own = ["--config=quickstart.yaml", *words, "--trainer.accelerator=cpu", "--trainer.max_epochs=1"]
    command = [sys.executable, "-m", "rlhf_lightning.cli", "fit", *own, f"--run.root={root}", f"--run.name={name}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return root / name


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def samples(run: Path) -> list[tuple[str, str, float]]:
    lines = map(json.loads, (run / "samples.jsonl").read_text().splitlines())
    return [(line["prompt"], line["response"], line["reward"]) for line in lines]


@pytest.mark.slow
@pytest.mark.scale
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "fsdp1", "zero3"])
def test_one_folder_with_the_rows_of_a_single_process(tmp_path, strategy):
    one = fit(tmp_path, "one")
    two = fit(tmp_path, "two", f"--config=strategies/{strategy}.yaml", "--trainer.devices=2")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
    assert [path.name for path in two.glob("config*.yaml")] == ["config.yaml"]
    assert samples(two) == samples(one)
    assert [row["rollout"] for row in rows(two)] == ["0", "1"]
    for here, there in zip(rows(two), rows(one), strict=True):
        compared = [name for name in SAME if there.get(name)]
        assert "held_out/accuracy" in compared
        assert [float(here[name]) for name in compared] == pytest.approx(
            [float(there[name]) for name in compared], rel=1e-3
        )
