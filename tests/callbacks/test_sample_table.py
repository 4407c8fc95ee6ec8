"""Which samples are shown, and how."""

import math

import pytest
from rich.console import Console

from rlhf_lightning.callbacks import SampleTable
from rlhf_lightning.callbacks.samples import as_markdown, as_rich, choose
from rlhf_lightning.errors import ConfigError

from .fake_rollouts import FakeRollouts, fit


def samples(*rewards):
    return [{"reward": reward, "response": f"r{i}"} for i, reward in enumerate(rewards)]


def chosen(rewards, count=2, by="reward"):
    return [(kind, sample["response"]) for kind, sample in choose(samples(*rewards), by=by, count=count)]


def test_best_median_and_worst_of_nine():
    assert chosen([8, 0, 7, 1, 6, 2, 5, 3, 4], count=1) == [("best", "r0"), ("median", "r8"), ("worst", "r1")]
    assert chosen([8, 0, 7, 1, 6, 2, 5, 3, 4]) == [
        ("best", "r0"), ("best", "r2"), ("median", "r6"), ("median", "r8"), ("worst", "r3"), ("worst", "r1"),
    ]  # fmt: skip


def test_few_samples_are_shown_once():
    assert chosen([1, 2, 3], count=2) == [("best", "r2"), ("best", "r1"), ("worst", "r0")]
    assert chosen([1], count=2) == [("best", "r0")]
    assert chosen([]) == [] and chosen([1, 2], by="score") == []


def test_nan_is_the_worst_and_equal_ones_keep_their_order():
    assert chosen([math.nan, -1, 5], count=1) == [("best", "r2"), ("median", "r1"), ("worst", "r0")]
    assert [name for _, name in chosen([1, 1, 1], count=1)] == ["r0", "r1", "r2"]


ODD = [("best", {"reward": 0.123456, "prompt": "a|b\n<b>&", "response": "x" * 50 + "[red]", "answer": ""})]


def test_markdown_shows_signs_as_they_are_and_cuts_long_texts():
    *_, row = as_markdown("T", ODD, max_chars=10).splitlines()
    assert row == "| best | 0.1235 | a\\|b<br>&lt;b&gt;& | xxxxxxxxxx… (55 characters) |".replace("& |", "&amp; |")


def test_scores_stand_before_the_reward_that_is_made_of_them():
    both = [("best", {"reward": 1.5, "scores": {"verifier": 1.0, "rm": 2.25}, "prompt": "p"}), ("worst", {"reward": 0})]
    _, _, header, _, best, worst = as_markdown("T", both, max_chars=10).splitlines()
    assert header == "| | verifier | rm | reward | prompt |"
    assert best == "| best | 1 | 2.25 | 1.5 | p |" and worst == "| worst |  |  | 0 |  |"


def test_the_terminal_takes_no_markup_from_responses():
    console = Console(width=200, record=True, file=None)
    with console.capture() as capture:
        console.print(as_rich("T", ODD, max_chars=100))
    assert "[red]" in capture.get() and "answer" not in capture.get()


def test_a_fit_shows_the_last_rollout_and_every_so_many_before(run_dir):
    fit(run_dir, FakeRollouts(), 5, callbacks=[SampleTable(every=2, count=1)], enable_progress_bar=False)
    folder = run_dir / "sample_tables"
    assert sorted(path.name for path in folder.iterdir()) == [f"rollout-00000{i}.md" for i in (1, 3, 4)]
    last = (folder / "rollout-000004.md").read_text().splitlines()
    assert last[0] == "# Samples of rollout 4, by reward"
    assert last[4:] == ["| best | 5 | p3 | r4.15 |", "| median | 2.667 | p2 | r4.8 |", "| worst | 0 | p0 | r4.0 |"]


def test_without_every_only_the_last_is_shown(run_dir):
    fit(run_dir, FakeRollouts(), 3, callbacks=[SampleTable()], enable_progress_bar=False)
    assert [path.name for path in (run_dir / "sample_tables").iterdir()] == ["rollout-000002.md"]


@pytest.mark.parametrize("wrong", [{"count": 0}, {"every": 0}, {"max_chars": 0}])
def test_arguments_that_cannot_be(wrong):
    with pytest.raises(ConfigError, match="SampleTable: count, max_chars and every must be at least 1"):
        SampleTable(**wrong)
