"""Labels by completions against what the task itself says of each step, and real kills."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlhf_lightning.data.tasks import ChainedArithmetic
from rlhf_lightning.labelling import LabelSteps, SampleSolutions
from rlhf_lightning.models.sources import EmbeddedArithmetic
from rlhf_lightning.samplers import InProcessSampler

TASK = ChainedArithmetic(held_out=20)


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def sampled(folder: Path, prompts: int) -> Path:
    path = folder / "solutions.jsonl"
    sampler = InProcessSampler(max_new_tokens=16)
    SampleSolutions(EmbeddedArithmetic(), TASK, str(path), sampler=sampler, samples=4, prompts=prompts).run()
    return path


def reachable(row: dict, end: int) -> bool:
    """Whether what the last line up to ``end`` leaves to add still gives the answer."""
    line = row["response"][:end].rpartition("\n")[2].removeprefix("=")
    return line.replace("+", "").isdigit() and sum(int(n) for n in line.split("+")) == int(row["answer"])


def judged(folder: Path, method: str) -> list[tuple[dict, bool]]:
    """Each step but the last, and whether it is right by the task's own arithmetic."""
    solutions, out = sampled(folder, 40), folder / "steps.jsonl"
    sampler = InProcessSampler(max_new_tokens=16)
    LabelSteps(EmbeddedArithmetic(), TASK, str(out), str(solutions), sampler=sampler, method=method, rollouts=16).run()
    found = [(step, reachable(row, step["end"])) for row in rows(out) for step in row["steps"][:-1]]
    share = sum(truth for _, truth in found) / len(found)
    assert 0.2 < share < 0.8  # so that saying always the same is right less often than the labels must be
    return found


@pytest.mark.parametrize("method", ["hard", "binary_search"])
def test_labels_agree_with_the_task(tmp_path: Path, method: str):
    found = judged(tmp_path, method)
    agreement = sum((step["label"] == 1) == truth for step, truth in found) / len(found)
    assert agreement >= 0.85


def test_soft_labels_put_right_steps_above_wrong_ones(tmp_path: Path):
    found = judged(tmp_path, "soft")
    right = [step["label"] for step, truth in found if truth]
    wrong = [step["label"] for step, truth in found if not truth]
    above = sum((r > w) + 0.5 * (r == w) for r in right for w in wrong) / (len(right) * len(wrong))
    assert above >= 0.9


SMALL = ["--questions_per_batch", "4"]
WORDS = {
    "sample": ["--config", "tiny/sample.yaml", "--prompts", "128", "--prompts_per_batch", "4"],
    "label-steps": ["--config", "tiny/label_steps.yaml", "--solutions=null", "--demonstrations=500", *SMALL],
}


def command(name: str, out: Path) -> list[str]:
    words = [*WORDS[name], "--out", str(out)]
    return [sys.executable, "-m", "rlhf_lightning.cli", name, *words]


@pytest.fixture(scope="module", params=WORDS)
def uninterrupted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, bytes]:
    """A command, and what it writes when nobody stops it."""
    out = tmp_path_factory.mktemp("whole") / "whole.jsonl"
    subprocess.run(command(request.param, out), check=True, capture_output=True, timeout=300)
    return request.param, out.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_killed_process_is_gone_on_with(tmp_path: Path, uninterrupted: tuple[str, bytes], number: int, code: int):
    name, whole = uninterrupted
    out = tmp_path / "killed.jsonl"
    process = subprocess.Popen(command(name, out), stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not (out.exists() and out.stat().st_size > 20_000):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.005)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == code
    assert (b"Go on where it was with: rlhf " + name.encode() in said) == (number != signal.SIGKILL)
    assert len(out.read_bytes()) < len(whole)
    subprocess.run(command(name, out), check=True, capture_output=True, timeout=300)
    assert out.read_bytes() == whole
