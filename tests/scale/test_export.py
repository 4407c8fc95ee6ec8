"""``rlhf export`` from the checkpoints of runs of several processes, in folders of every format."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.faults.test_dead_ranks import RLHF, end, start
from tests.scale.test_checkpoints import ACROSS, furthest
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

SHARDS = "{class_path: rlhf_lightning.strategies.fsdp2.FSDP2, init_args: {save_distributed_checkpoint: true}}"
DATA = [
    {"name": "demonstrations", "size": 200, "task": {"name": "chained_arithmetic", "held_out": 4, "train_size": 50}}
]
PARTS: dict[str, dict[str, Any]] = {
    "policy": {"config": "tiny/grpo.yaml", "kind": AutoModelForCausalLM, "more": ()},
    "critic": {"config": "tiny/ppo.yaml", "kind": AutoModelForSequenceClassification, "more": ()},
    "reward_model": {
        "config": "tiny/orm.yaml",
        "kind": AutoModelForSequenceClassification,
        "more": ("--model.batch_size=8", "--model.updates_per_epoch=2", f"--data.sources={json.dumps(DATA)}"),
    },
}


def exported(root: Path, name: str, part: str) -> dict[str, torch.Tensor]:
    """By the command, in another process than those that trained; then as transformers reads it."""
    out = root / f"{name} out"
    words = ["export", "--model", str(root / name), "--part", part, "--out", str(out), "--shard-size", "50KB"]
    done = subprocess.run([sys.executable, *RLHF, *words], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(list(out.glob("*.safetensors"))) > 1
    return PARTS[part]["kind"].from_pretrained(out).state_dict()


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """``one(part)``: what a single process's run exports."""

    @cache
    def made(part: str) -> dict[str, torch.Tensor]:
        root = tmp_path_factory.mktemp(part)
        assert end(start(root, "one", 1, *PARTS[part]["more"], world=1, config=PARTS[part]["config"])) == [0]
        return exported(root, "one", part)

    return made


@pytest.mark.slow
@pytest.mark.scale
@pytest.mark.parametrize(
    ("part", "strategy"),
    [
        ("policy", SHARDS), ("policy", "fsdp1"), ("policy", "zero2"), ("policy", "zero3"),
        ("critic", SHARDS), ("critic", "zero3"), ("reward_model", "fsdp1"), ("reward_model", "zero2"),
    ],
)  # fmt: skip
def test_what_several_processes_trained_is_exported_by_one(tmp_path, one, part, strategy):
    chosen = PARTS[part]
    assert end(start(tmp_path, "run", 1, *chosen["more"], strategy=strategy, config=chosen["config"])) == [0, 0]
    assert (tmp_path / "run/checkpoints/last.ckpt").is_dir()
    assert furthest(exported(tmp_path, "run", part), one(part)) <= ACROSS
