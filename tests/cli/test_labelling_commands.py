"""``rlhf sample`` and ``rlhf label-steps`` from the command line, one after the other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhf_lightning.data.reward_sources.responses import Solutions

SAMPLE = ["sample", "--config", "tiny/sample.yaml", "--prompts", "6", "--samples", "4"]
LABEL = ["label-steps", "--config", "tiny/label_steps.yaml", "--rollouts", "2"]


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_shipped_configurations_work_one_after_the_other(rlhf, folder: Path):
    sampled = rlhf(*SAMPLE)
    assert sampled.code == 0, sampled.err
    assert "24 solutions to 6 prompts in data/tiny-solutions.jsonl" in sampled.out
    assert "prompts 6 of 6" in sampled.err
    labelled = rlhf(*LABEL)
    assert labelled.code == 0, labelled.err
    assert "48 steps of 24 solutions in data/tiny-steps.jsonl" in labelled.out
    given, found = rows(folder / "data/tiny-solutions.jsonl"), rows(folder / "data/tiny-steps.jsonl")
    assert [row["response"] for row in found] == [row["response"] for row in given]
    assert {step["label"] for row in found for step in row["steps"]} == {0.0, 1.0}
    assert groups_of("data/tiny-steps.jsonl") == [
        [(row["correct"], [(step["end"], step["label"]) for step in row["steps"]]) for row in found[at : at + 4]]
        for at in range(0, 24, 4)
    ]


def groups_of(path: str) -> list[list[tuple]]:
    """The groups that a reward model trains on, as labels."""
    source = Solutions(path)
    source.open()
    groups = [source.group(index) for index in range(len(source))]
    return [[(r.correct, [(step.end, step.label) for step in r.steps]) for r in group.responses] for group in groups]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            [*SAMPLE, "--task.terns", "3"],
            "task.terns: ChainedArithmetic takes no argument 'terns'. Did you mean 'terms'?",
        ),
        ([*SAMPLE, "--samples", "0"], "samples must be at least 1, got 0"),
        ([*SAMPLE, "--sampler.max_new_tokens", "256"], "leaves no room for a prompt in a context of"),
        ([*SAMPLE, "--split", "test"], "split: expected one of 'train', 'held_out', got test"),
        ([*SAMPLE, "--policy", "./nope"], "model folder nope does not exist"),
        ([*SAMPLE, "--chat", "true"], "has no chat template, but chat is true"),
        (LABEL, "data/tiny-solutions.jsonl: no such file"),
        ([*LABEL, "--rollouts", "0"], "rollouts must be at least 1, got 0"),
        ([*LABEL, "--method", "sft"], "method: expected one of 'hard', 'soft', 'binary_search', got sft"),
        ([*LABEL, "--task", "aritmetic"], "no task is called 'aritmetic'. Did you mean 'chained_arithmetic'?"),
        (["label-step"], "unknown command 'label-step'. Did you mean 'label-steps'?"),
        (["sample"], "rlhf sample: missing: policy"),
    ],
)
def test_bad_input(rlhf, folder: Path, words, expected):
    assert expected in rlhf(*words).error
    assert not list(folder.rglob("*.jsonl"))
