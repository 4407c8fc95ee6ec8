"""``rlhf export`` from the checkpoints of runs of several processes, in folders of every format."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.faults.test_dead_ranks import RLHF, end, start
from tests.scale.test_checkpoints import ACROSS, furthest
from transformers import AutoModelForCausalLM

SHARDS = "{class_path: rlhf_lightning.strategies.fsdp2.FSDP2, init_args: {save_distributed_checkpoint: true}}"


def exported(root: Path, name: str) -> dict[str, torch.Tensor]:
    """By the command, in another process than those that trained; then as transformers reads it."""
    words = ["export", "--model", str(root / name), "--out", str(root / f"{name} out"), "--shard-size", "50KB"]
    done = subprocess.run([sys.executable, *RLHF, *words], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(list((root / f"{name} out").glob("*.safetensors"))) > 1
    return AutoModelForCausalLM.from_pretrained(root / f"{name} out").state_dict()


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> dict[str, torch.Tensor]:
    root = tmp_path_factory.mktemp("one")
    assert end(start(root, "one", 1, world=1)) == [0]
    return exported(root, "one")


@pytest.mark.slow
@pytest.mark.scale
@pytest.mark.parametrize("strategy", [SHARDS, "fsdp1", "zero3"])
def test_a_policy_of_shards_is_exported_by_one_process(tmp_path, one, strategy):
    assert end(start(tmp_path, "run", 1, strategy=strategy)) == [0, 0]
    assert (tmp_path / "run/checkpoints/last.ckpt").is_dir()
    assert furthest(exported(tmp_path, "run"), one) <= ACROSS
