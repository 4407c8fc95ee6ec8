"""Starts the ranks of a run as processes of this machine, as torchrun would."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any, TextIO

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


@cache
def compile_deepspeed() -> None:
    """DeepSpeed's collectives of one machine are compiled when first used, which takes longer than a test may."""
    code = (
        "from deepspeed.accelerator import get_accelerator as get; "
        "get().create_op_builder('ShareMemCommBuilder').load()"
    )
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "DS_ACCELERATOR": "cpu"}, check=True, timeout=900)


def run(command: list[str], *, world: int, timeout: float = TIMEOUT) -> list[str]:
    """Runs a command on every rank; what each printed."""
    if any("zero" in word for word in command):
        compile_deepspeed()
    port, ends = str(free_port()), time.monotonic() + timeout
    with ExitStack() as stack:
        outs = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(world)]
        ranks = [_start(command, rank, world, port, out) for rank, out in enumerate(outs)]
        try:
            for process in ranks:
                process.wait(timeout=max(0.0, ends - time.monotonic()))
        finally:
            for process in ranks:
                process.kill()
        said = [_text(out) for out in outs]
    failed = [number for number, process in enumerate(ranks) if process.returncode]
    assert not failed, f"ranks {failed} failed:\n" + "\n".join(said[number][-3000:] for number in failed)
    return said


def _text(file: TextIO) -> str:
    file.seek(0)
    return file.read()


def _start(command: list[str], rank: int, world: int, port: str, out: TextIO) -> subprocess.Popen[str]:
    """A rank, whose output goes to a file: a pipe that is not read while another rank is waited for would stop it."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "GROUP_RANK": 0}
    elastic = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    own = {name: str(value) for name, value in place.items()} | elastic if world > 1 else {}
    threads = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu"}
    return subprocess.Popen(
        command, cwd=ROOT, env=os.environ | own | threads, text=True, stdout=out, stderr=subprocess.STDOUT
    )
