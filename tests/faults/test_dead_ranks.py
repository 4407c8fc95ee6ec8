"""Two ranks of which one dies, or is asked to stop; and runs that are asked to stop at all."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
import torch
from tests.scale.processes import free_port

LIMIT = 60
"""Seconds within which the others must end."""


RLHF = ["-m", "rlhf_lightning.cli"]


def start(
    root: Path,
    name: str,
    rollouts: int,
    *more: str,
    world: int = 2,
    program: Sequence[str] = RLHF,
    strategy: str = "ddp",
    config: str = "tiny/grpo.yaml",
) -> list[subprocess.Popen]:
    """``rlhf fit`` on each rank, as torchrun would start it."""
    settings = ["--config", config, "--run.root", str(root), "--run.name", name, *more]
    several = [f"--trainer.strategy={strategy}", f"--trainer.devices={world}"] if world > 1 else []
    words = [sys.executable, *program, "fit", *settings, *several, f"--trainer.max_epochs={rollouts}"]
    port = str(free_port())
    return [_rank(words, root / f"{name}-{rank}.log", rank, world, port) for rank in range(world)]


def _rank(words: list[str], log: Path, rank: int, world: int, port: str) -> subprocess.Popen:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "GROUP_RANK": 0}
    elastic = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    own = {**{name: str(value) for name, value in place.items()}, **elastic} if world > 1 else {}
    environment = {**os.environ, **own, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    file = log.open("a")
    return subprocess.Popen(words, stdout=file, stderr=file, env=environment)


def wait_for(path: Path, processes: list[subprocess.Popen]) -> None:
    deadline = time.monotonic() + 120
    while not path.exists() and time.monotonic() < deadline and all(p.poll() is None for p in processes):
        time.sleep(0.01)
    assert path.exists(), "the run ended, or took too long, before it could be interrupted"


def end(processes: list[subprocess.Popen], limit: float = 150) -> list[int]:
    try:
        return [process.wait(timeout=limit) for process in processes]
    finally:
        for process in processes:
            process.kill()


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def assert_same(run: Path, whole: Path) -> None:
    ours, theirs = weights(run), weights(whole)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("whole")
    assert end(start(root, "whole", 3)) == [0, 0]
    return root / "whole"


@pytest.mark.slow
@pytest.mark.scale
@pytest.mark.parametrize("dies", [0, 1])
def test_a_rank_that_dies_is_named_and_the_others_end(tmp_path, whole, dies):
    """Rank 0 too, which keeps the store."""
    processes, lives = start(tmp_path, "run", 3), 1 - dies
    wait_for(tmp_path / "run/checkpoints/last.ckpt", processes)
    processes[dies].send_signal(signal.SIGKILL)
    codes = end(processes, LIMIT)
    said = (tmp_path / f"run-{lives}.log").read_text()
    assert codes[lives] == 1 and codes[dies] == -signal.SIGKILL
    named = f"rank {dies} (host {os.uname().nodename}, pid {processes[dies].pid}) has died; resume with --ckpt_path"
    assert named in said and f"rank {lives} (host" not in said
    assert end(start(tmp_path, "run", 3, "--ckpt_path", "last")) == [0, 0]
    assert_same(tmp_path / "run", whole)


@pytest.mark.slow
@pytest.mark.scale
def test_a_rank_that_hangs_is_named_and_the_others_end(tmp_path):
    quick = "--trainer.callbacks+={class_path: Watchdog, init_args: {timeout: 8, interval: 1}}"
    processes = start(tmp_path, "run", 300, quick)
    wait_for(tmp_path / "run/checkpoints/last.ckpt", processes)
    processes[1].send_signal(signal.SIGSTOP)
    try:
        assert processes[0].wait(timeout=LIMIT) == 1
    finally:
        end(processes[:1])
        processes[1].kill()
    said = (tmp_path / "run-0.log").read_text()
    assert said.count("has died or hangs") == 1 and f"pid {processes[1].pid}) has died or hangs" in said


@pytest.mark.slow
@pytest.mark.scale
@pytest.mark.parametrize("asked", [[1], [0, 1]])
def test_ranks_stop_together_whichever_is_asked(tmp_path, whole, asked):
    processes = start(tmp_path, "run", 3)
    wait_for(tmp_path / "run/checkpoints/last.ckpt", processes)
    for rank in asked:
        processes[rank].send_signal(signal.SIGTERM)
    assert end(processes, LIMIT) == [0, 0]
    assert "is kept; a resumed run repeats what came after it" in (tmp_path / "run-0.log").read_text()
    assert end(start(tmp_path, "run", 3, "--ckpt_path", "last")) == [0, 0]
    assert_same(tmp_path / "run", whole)


@pytest.mark.slow
@pytest.mark.scale
def test_a_rank_that_lightning_started_is_named_too(tmp_path):
    """Its launcher would kill rank 0 before that could say anything."""
    words = [sys.executable, *RLHF, "fit", "--config", "tiny/grpo.yaml", "--trainer.strategy=ddp"]
    own = ["--trainer.devices=2", "--trainer.max_epochs=300", "--run.root", str(tmp_path), "--run.name", "run"]
    with (tmp_path / "log").open("w") as log:
        first = subprocess.Popen([*words, *own], stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
    wait_for(tmp_path / "run/checkpoints/last.ckpt", [first])
    children = psutil.Process(first.pid).children()
    (second,) = (child.pid for child in children if "--trainer.devices=2" in child.cmdline())
    os.kill(second, signal.SIGKILL)
    assert end([first], LIMIT) == [1]
    assert f"rank 1 (host {os.uname().nodename}, pid {second}) has died; resume" in (tmp_path / "log").read_text()
