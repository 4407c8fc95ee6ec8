"""Freed memory stays with the process, where nobody has said otherwise."""

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, torch
from rlhf_lightning.models.cpu_memory import keep_freed_memory
print(keep_freed_memory())
faults = []
for _ in range(16):
    torch.zeros(64 << 20, dtype=torch.uint8).add_(1)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(faults[15] - faults[7])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's own setting")
@pytest.mark.parametrize(("environment", "kept"), [({}, True), ({"MALLOC_ARENA_MAX": "2"}, False)])
def test_pages_are_not_asked_for_again_and_again(environment, kept):
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k != "GLIBC_TUNABLES"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=inherited | environment, capture_output=True, text=True, check=True
    )
    said, faults = done.stdout.split()
    assert said == str(kept)
    assert (int(faults) < 4 * (16 << 10)) == kept
