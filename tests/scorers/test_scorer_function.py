"""A function of one's own as a scorer, in processes that can be killed."""

import logging

import pytest

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.protocols import Task
from rlhf_lightning.scorers import FunctionScorer
from rlhf_lightning.types import Problem

SOURCE = '''
import os, time

def reward(prompt, response, answer, **fields):
    """What the response says is done."""
    if response == "hang":
        time.sleep(60)
    if response == "boom":
        raise KeyError("no such key")
    if response == "eat":
        bytearray(1 << 40)
    if response == "tower":
        return 9 ** 9 ** 9 ** 9
    if response == "pid":
        return os.getpid()
    return None if response == "nothing" else float(response)


def lengths(responses, answers):
    if "hang" in responses:
        time.sleep(60)
    return [len(r) if r else float("nan") for r in responses]


def needs(response, colour):
    return 1.0
'''


class One(Task):
    name = "one"

    def train_problems(self):
        return [Problem("t", "q", "", {"place": "rows.jsonl, line 7", "fields": {"color": "red"}})]

    def held_out_problems(self):
        return [Problem("h", "q", "", {"fields": {"color": "red"}})]

    def verify(self, problem, response):
        return 1.0


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    made = tmp_path_factory.mktemp("own") / "my_reward.py"
    made.write_text(SOURCE)
    return made


@pytest.fixture(scope="module")
def scorer(file):
    made = FunctionScorer(f"{file}:reward", time_limit=1.0, memory_limit=0.5, failure_score=-1.0)
    made.check()
    yield made
    made.close()


def test_each_failure_costs_only_its_own_response_and_is_named(scorer, rollout_of, caplog):
    texts = ["1", "hang", "0.25", "boom", "2", "eat", "nothing", "nan", "tower", "3"]
    with caplog.at_level(logging.WARNING):
        scores = scorer(rollout_of(texts))
    assert scores.values.tolist() == [1, -1, 0.25, -1, 2, -1, -1, -1, -1, 3]
    assert scores.failed.tolist() == [text not in ("1", "0.25", "2", "3") for text in texts]
    assert scores.parts["reward"].tolist() == scores.values.tolist()
    assert "scorer reward: 6 of 10 responses" in caplog.text and "stopped after 1 s" in caplog.text


def test_the_reasons_name_exception_line_and_limit(scorer):
    items = [("function", Problem("p", "q"), text) for text in ("boom", "eat", "nothing", "4")]
    (_, boom), (_, eat), (_, nothing), last = scorer.outcomes(items)
    assert boom.startswith("KeyError: 'no such key' (") and boom.endswith("my_reward.py, line 9)")
    assert eat == "stopped by memory_limit"
    assert nothing.startswith("TypeError: reward must return a number, and returned None")
    assert last == (4.0, None)


def test_the_batch_form_is_called_once(file, rollout_of):
    scorer = FunctionScorer(f"{file}:lengths", time_limit=1.0, label="length")
    scores = scorer(rollout_of(["a", "bbb", "", "cc"]))
    assert scores.values.tolist() == [1, 3, 0, 2]
    assert scores.failed.tolist() == [False, False, True, False]
    assert set(scores.parts) == {"length"}
    assert scorer(rollout_of(["a", "hang"])).failed.tolist() == [True, True]
    assert scorer(rollout_of(["dddd"])).values.tolist() == [4]
    assert scorer(rollout_of([])).values.shape == (0,)
    scorer.close()


def test_columns_are_looked_for_before_the_first_rollout(file):
    scorer = FunctionScorer(f"{file}:needs", isolate=False)
    scorer.bind({"one": One()})
    with pytest.raises(ConfigError, match=r"needs asks for 'colour', but task one \(h\) has no .*Did you mean 'color'"):
        scorer.check()


def test_a_file_that_does_not_import_is_one_line(tmp_path):
    (tmp_path / "bad.py").write_text("import nothing_of_that_name\ndef reward(response): return 1")
    scorer = FunctionScorer(f"{tmp_path / 'bad.py'}:reward")
    with pytest.raises(ConfigError, match=r"^scorer function: .*bad\.py, line 1 cannot be imported: ModuleNotFound"):
        scorer.check()


@pytest.mark.parametrize("arguments", [{"time_limit": 0}, {"memory_limit": -1.0}, {"workers": 0}])
def test_values_out_of_range_are_refused(file, arguments):
    with pytest.raises(ConfigError, match=f"scorer reward: {next(iter(arguments))} must be"):
        FunctionScorer(f"{file}:reward", **arguments)
