"""Starts the ranks of a run as processes of this machine, as torchrun would."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
TIMEOUT = 240
"""Seconds that a training, start included, may take; a busy machine is slow."""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def train(folder: Path, *, world: int, **settings: Any) -> list[str]:
    """Runs ``training.train`` on every rank; what each printed.

    Raises:
        AssertionError: If one fails, with what it said.
    """
    told = json.dumps({"folder": str(folder), "world": world, **settings})
    return run([sys.executable, "-m", "tests.scale.training", told], world=world)


def train_all(cases: list[dict[str, Any]], *, world: int) -> list[str]:
    """Runs ``training.train`` for each case in turn, all in the same processes."""
    told = json.dumps([{"world": world, **case} for case in cases])
    timeout = TIMEOUT + 20 * len(cases)
    return run([sys.executable, "-m", "tests.scale.training", told], world=world, timeout=timeout)


def run(command: list[str], *, world: int, timeout: float = TIMEOUT) -> list[str]:
    port = str(free_port())
    ranks = [_start(command, rank, world, port) for rank in range(world)]
    try:
        said = [process.communicate(timeout=timeout)[0] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    failed = [number for number, process in enumerate(ranks) if process.returncode]
    assert not failed, f"ranks {failed} failed:\n" + "\n".join(said[number][-3000:] for number in failed)
    return said


def _start(command: list[str], rank: int, world: int, port: str) -> subprocess.Popen[str]:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "GROUP_RANK": 0}
    elastic = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    own = {name: str(value) for name, value in place.items()} | elastic if world > 1 else {}
    threads = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu"}
    return subprocess.Popen(
        command, cwd=ROOT, env=os.environ | own | threads, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
