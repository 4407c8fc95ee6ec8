"""``rlhf sample``: what is written, nested subsets, and going on after a kill at any moment."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhf_lightning.data.tasks import ChainedArithmetic
from rlhf_lightning.errors import ConfigError, RunFolderError
from rlhf_lightning.labelling import SampleSolutions
from rlhf_lightning.models.sources import EmbeddedArithmetic
from rlhf_lightning.samplers import InProcessSampler


class Stops(InProcessSampler):
    """Is interrupted in its n-th call."""

    def __init__(self, calls: int) -> None:
        super().__init__(max_new_tokens=16)
        self.calls = calls

    def __call__(self, *args, **kwargs):
        self.calls -= 1
        if self.calls == 0:
            raise KeyboardInterrupt
        return super().__call__(*args, **kwargs)


# an InProcessSampler by name, so that a stopped job and the one that goes on have the same settings
Stops.__name__ = "InProcessSampler"


def job(out: Path, **arguments) -> SampleSolutions:
    defaults = {"sampler": InProcessSampler(max_new_tokens=16), "samples": 3, "prompts": 10, "prompts_per_batch": 4}
    task = arguments.pop("task", ChainedArithmetic(held_out=20))
    return SampleSolutions(EmbeddedArithmetic(), task, str(out), **defaults | arguments)


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a job writes that nobody stops."""
    path = tmp_path_factory.mktemp("whole") / "whole.jsonl"
    job(path).run()
    return path


def test_each_line_is_a_solution_with_its_score(whole: Path):
    found = rows(whole)
    assert [row["sample"] for row in found] == [0, 1, 2] * 10
    assert len({row["id"] for row in found}) == 10
    for row in found:
        numbers = [int(n) for n in row["question"].removesuffix("=").split("+")]
        assert row["answer"] == str(sum(numbers))
        assert row["correct"] == float(row["response"].endswith(f"\n={sum(numbers)}"))
        assert (row["task"], row["seed"], row["failed"]) == ("chained_arithmetic", 1, False)
        assert row["policy"] == EmbeddedArithmetic().identity()
    assert {row["correct"] for row in found} == {0.0, 1.0}
    assert all(row["answer_found"] == row["answer"] for row in found if row["correct"])


def test_fewer_samples_and_fewer_prompts_are_the_first_of_more(whole: Path, tmp_path: Path):
    small = ChainedArithmetic(held_out=20)
    job(tmp_path / "less.jsonl", samples=2, prompts=None, fraction=5 / len(small.train_problems())).run()
    kept = [(r["id"], r["sample"], r["response"]) for r in rows(whole) if r["sample"] < 2]
    assert [(r["id"], r["sample"], r["response"]) for r in rows(tmp_path / "less.jsonl")] == kept[:10]


def test_batches_do_not_change_a_solution(whole: Path, tmp_path: Path):
    job(tmp_path / "x.jsonl", prompts_per_batch=7).run()
    assert (tmp_path / "x.jsonl").read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("cut", [None, 0, -1, -40, 700])
def test_a_stopped_job_goes_on_and_writes_the_same_bytes(whole: Path, tmp_path: Path, cut: int | None):
    path = tmp_path / "x.jsonl"
    with pytest.raises(KeyboardInterrupt):
        job(path, sampler=Stops(3)).run()
    assert len(rows(path)) == 2 * 4 * 3
    if cut is not None:
        path.write_bytes(path.read_bytes()[:cut])
    job(path).run()
    assert path.read_bytes() == whole.read_bytes()


def test_nothing_is_sampled_when_nothing_is_missing(whole: Path, tmp_path: Path, capsys):
    path = tmp_path / "x.jsonl"
    job(path).run()
    before = capsys.readouterr().out.splitlines()
    job(path, sampler=Stops(1)).run()
    again = capsys.readouterr().out.splitlines()
    assert before[1:] == again[1:]
    assert "nothing was missing" in again[0]


def test_more_prompts_are_added(whole: Path, tmp_path: Path):
    path = tmp_path / "x.jsonl"
    job(path, prompts=3).run()
    assert path.read_bytes() == b"".join(whole.read_bytes().splitlines(keepends=True)[:9])
    job(path).run()
    assert path.read_bytes() == whole.read_bytes()


def test_the_summary_counts(whole: Path, tmp_path: Path, capsys):
    job(tmp_path / "x.jsonl").run()
    right = sum(row["correct"] for row in rows(whole))
    shown = capsys.readouterr().out
    assert "30 solutions to 10 prompts" in shown
    assert f"right: {right / 30:.1%}" in shown
    groups = [[r["correct"] for r in rows(whole)[at : at + 3]] for at in range(0, 30, 3)]
    assert f"none of a prompt's for {sum(not any(g) for g in groups) / 10:.1%}" in shown


def test_held_out_prompts(tmp_path: Path):
    task = ChainedArithmetic(held_out=20)
    job(tmp_path / "x.jsonl", task=task, split="held_out", prompts=None, samples=1).run()
    assert [row["id"] for row in rows(tmp_path / "x.jsonl")] == [p.id for p in task.held_out_problems()]


def test_several_tasks(tmp_path: Path):
    second = ChainedArithmetic(terms=2, held_out=20)
    second.name = "short"
    job(tmp_path / "x.jsonl", task=[ChainedArithmetic(held_out=20), second], prompts=40, samples=1).run()
    assert {row["task"] for row in rows(tmp_path / "x.jsonl")} == {"chained_arithmetic", "short"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"seed": 2}, "was made with seed 1, now it is 2"),
        ({"samples": 4}, "was made with samples 3, now it is 4"),
        ({"sampler": InProcessSampler(max_new_tokens=16, temperature=0.9)}, "made with temperature 1.0, now it is 0.9"),
        ({"task": ChainedArithmetic(held_out=20, seed=5)}, "line 1: is of another problem"),
    ],
)
def test_a_file_of_other_settings_is_not_added_to(whole: Path, tmp_path: Path, change, expected):
    for file in whole.parent.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(RunFolderError, match=expected):
        job(tmp_path / "whole.jsonl", **change).run()
    assert (tmp_path / "whole.jsonl").read_bytes() == whole.read_bytes()


def test_a_foreign_file_is_not_added_to(tmp_path: Path):
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(RunFolderError, match="there is no telling what made it"):
        job(tmp_path / "x.jsonl").run()
    assert (tmp_path / "x.jsonl").read_text() == '{"a": 1}\n'


def test_a_place_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="cannot be written"):
        job(tmp_path / "file" / "x.jsonl").run()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"samples": 0}, "samples must be at least 1, got 0"),
        ({"prompts": 0}, "prompts must be at least 1, got 0"),
        ({"prompts_per_batch": 0}, "prompts_per_batch must be at least 1, got 0"),
        ({"prompts": None, "fraction": 0.0}, r"fraction must be in \(0, 1\], got 0.0"),
        ({"fraction": 0.5}, "give either prompts or fraction, not both"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, arguments, expected):
    with pytest.raises(ConfigError, match=expected):
        job(tmp_path / "x.jsonl", **arguments)


def test_more_prompts_than_there_are(tmp_path: Path):
    with pytest.raises(ConfigError, match="21 are asked for, but there are 20 held_out prompts"):
        job(tmp_path / "x.jsonl", split="held_out", prompts=21).run()
    assert not (tmp_path / "x.jsonl").exists()
