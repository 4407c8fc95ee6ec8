"""A run that is killed and resumed leaves the numbers and the weights of one that was not, bit for bit."""

import csv
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROLLOUTS = 6
UNTIMED = ("time/", "speed/", "memory/")


def command(root: Path, name: str, rollouts: int, *more: str) -> list[str]:
    settings = ["--config", "tiny/grpo.yaml", "--run.root", str(root), "--run.name", name]
    return [sys.executable, "-m", "rlhf_lightning.cli", "fit", *settings, f"--trainer.max_epochs={rollouts}", *more]


def start(root: Path, name: str, rollouts: int, *more: str) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    log = (root / f"{name}.log").open("a")
    return subprocess.Popen(command(root, name, rollouts, *more), stdout=log, stderr=log, env=environment)


def finish(process: subprocess.Popen, root: Path, name: str) -> None:
    status = process.wait(timeout=300)
    assert status == 0, (root / f"{name}.log").read_text()[-3000:]


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if not k.startswith(UNTIMED)} for row in csv.DictReader(file)]


def finished_rollouts(run: Path) -> int:
    return len(list((run / "checkpoints").glob("last.ckpt"))) and max(
        int(path.stem.split("-")[1]) for path in (run / "checkpoints").glob("rollout-*.ckpt")
    )


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def kill_somewhere(root: Path, name: str, rollouts: int, how: signal.Signals, rng: random.Random, *more: str) -> None:
    """Starts the run, waits for it to get one rollout further than it was, and kills it at a random moment."""
    run, before = root / name, finished_rollouts(root / name)
    process = start(root, name, rollouts, *more)
    deadline = time.monotonic() + 240
    while finished_rollouts(run) <= before and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(rng.uniform(0.0, 0.15))
    process.send_signal(how)
    process.wait(timeout=120)


def assert_same(root: Path, killed: str, whole: str) -> None:
    assert rows(root / killed) == rows(root / whole)
    ours, theirs = weights(root / killed), weights(root / whole)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert (root / killed / "samples.jsonl").read_text() == (root / whole / "samples.jsonl").read_text()


def interrupt(root: Path, kills: list[signal.Signals], rollouts: int, seed: int, *settings: str) -> None:
    rng = random.Random(seed)
    finish(start(root, "whole", rollouts, *settings), root, "whole")
    more = settings
    for how in kills:
        kill_somewhere(root, "killed", rollouts, how, rng, *more)
        more = (*settings, "--ckpt_path", "last")
    finish(start(root, "killed", rollouts, *more), root, "killed")
    assert_same(root, "killed", "whole")


def test_sigterm_and_sigkill(tmp_path):
    interrupt(tmp_path, [signal.SIGTERM, signal.SIGKILL], ROLLOUTS, seed=0)


@pytest.mark.slow
def test_ten_kills_at_random_moments(tmp_path):
    interrupt(tmp_path, [signal.SIGTERM, signal.SIGKILL] * 5, rollouts=24, seed=1)


@pytest.mark.slow
def test_kills_while_the_next_rollout_is_being_drawn(tmp_path):
    ahead = ("--model.overlap=1", "--model.policy_loss=importance")
    interrupt(tmp_path, [signal.SIGTERM, signal.SIGKILL] * 2, 12, 2, *ahead)
    assert [row["rollout/staleness"] for row in rows(tmp_path / "killed")] == ["0.0", *["3.0"] * 11, ""]


@pytest.mark.slow
def test_killed_before_the_first_checkpoint(tmp_path):
    finish(start(tmp_path, "whole", 2), tmp_path, "whole")
    process = start(tmp_path, "killed", 2)
    while not (tmp_path / "killed" / "config.yaml").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
    finish(start(tmp_path, "killed", 2, "--ckpt_path", "last"), tmp_path, "killed")
    assert_same(tmp_path, "killed", "whole")
