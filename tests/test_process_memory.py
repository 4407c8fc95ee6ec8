"""What a process says that it holds, against what it took."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="Linux tells; others give the peak")

MIB = 2**20
TAKES = """
import json
from rlhf_lightning.process_memory import peak_resident, resident
said = [(resident(), peak_resident())]
block = bytearray(128 << 20)
said.append((resident(), peak_resident()))
del block
said.append((resident(), peak_resident()))
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def said():
    large = bytearray(512 * MIB)  # what started the process is not part of it
    done = subprocess.run([sys.executable, "-c", TAKES], capture_output=True, text=True, check=True)
    del large
    return json.loads(done.stdout)


def test_what_is_taken_counts_and_what_is_given_back_does_not(said):
    (before, _), (with_block, _), (after, _) = said
    assert with_block - before == pytest.approx(128 * MIB, rel=0.05)
    assert abs(after - before) < 8 * MIB


def test_the_peak_stays_and_is_the_program_s_own(said):
    (_, at_first), (_, with_block), (_, after) = said
    assert at_first < 256 * MIB
    assert with_block == pytest.approx(said[1][0], rel=0.05)
    assert after == pytest.approx(with_block, rel=0.01)
