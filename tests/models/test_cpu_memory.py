"""Freed memory stays with the process, where nobody has said otherwise."""

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, threading, torch
from rlhf_lightning.models.cpu_memory import keep_freed_memory
print(keep_freed_memory())
def work():
    faults = []
    for _ in range(16):
        torch.empty({size} << 18).fill_(1.0)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
    print(faults[15] - faults[7])
{run}
"""
HERE, IN_A_THREAD = "work()", "thread = threading.Thread(target=work); thread.start(); thread.join()"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's own setting")
@pytest.mark.parametrize(("environment", "kept"), [({}, True), ({"MALLOC_ARENA_MAX": "2"}, False)])
@pytest.mark.parametrize(("run", "size"), [(HERE, 64), (IN_A_THREAD, 12)])
def test_pages_are_not_asked_for_again_and_again(environment, kept, run, size):
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k != "GLIBC_TUNABLES"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(size=size, run=run)],
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    said, faults = done.stdout.split()
    assert said == str(kept)
    assert (int(faults) < 4 * (size << 8)) == kept  # of eight times as many; a page has 4 KB
