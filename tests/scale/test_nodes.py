"""Two nodes of one process each, as torchrun starts them; here both are this machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.faults.test_dead_ranks import RLHF, end, start, weights
from tests.scale.processes import free_port
from tests.scale.test_checkpoints import ACROSS, furthest


def nodes(root: Path, name: str, *more: str) -> list[subprocess.Popen]:
    port = str(free_port())
    settings = ["--config", "tiny/grpo.yaml", "--config", "strategies/fsdp2.yaml", "--run.root", str(root)]
    scale = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.num_nodes=2", f"--run.name={name}", *more]
    started = []
    for node in range(2):
        place = ["--nnodes=2", f"--node-rank={node}", "--nproc-per-node=1", "--master-addr=127.0.0.1"]
        torchrun = [sys.executable, "-m", "torch.distributed.run", *place, f"--master-port={port}"]
        with (root / f"{name}-{node}.log").open("a") as log:
            words = [*torchrun, *RLHF, "fit", *settings, *scale]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
            started.append(subprocess.Popen(words, stdout=log, stderr=log, env=environment))
    return started


def said(root: Path, name: str) -> str:
    return "".join((root / f"{name}-{node}.log").read_text()[-3000:] for node in range(2))


def rollouts(run: Path) -> list[str]:
    return [line.split(",")[0] for line in (run / "metrics.csv").read_text().splitlines()[1:]]


@pytest.mark.slow
@pytest.mark.scale
def test_two_nodes_train_and_go_on_as_one_process(tmp_path):
    """One command begins and goes on; only rank 0 opens the run's folder and writes to it."""
    for epochs in (1, 2):
        codes = end(nodes(tmp_path, "nodes", f"--trainer.max_epochs={epochs}", "--ckpt_path=auto"))
        assert codes == [0, 0], said(tmp_path, "nodes")
    assert end(start(tmp_path, "one", 2, world=1)) == [0]
    ours, theirs = weights(tmp_path / "nodes"), weights(tmp_path / "one")
    assert furthest(ours, theirs) <= ACROSS
    assert rollouts(tmp_path / "nodes") == rollouts(tmp_path / "one") == ["0", "1", "2"]  # the last is an evaluation
    assert torch.load(tmp_path / "nodes/checkpoints/last.ckpt", weights_only=True)["rlhf"]["rollout_index"] == 2


@pytest.mark.slow
@pytest.mark.scale
def test_a_refused_folder_ends_both_nodes(tmp_path):
    """Rank 0 refuses it before the other can reach it; torchrun ends the other."""
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    codes = end(nodes(tmp_path, "taken", "--trainer.max_epochs=1"), 100)
    assert all(codes) and "taken exists already and is never overwritten" in said(tmp_path, "taken")
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["notes.txt"]
