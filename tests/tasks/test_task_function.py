"""A function of one's own: what it is called with, what it may return, and what is told before anything runs."""

import json
import pickle

import pytest

from rlhf_lightning.data.tasks import JsonlTask
from rlhf_lightning.data.tasks.function import FunctionVerifier, UserFunction
from rlhf_lightning.errors import ConfigError, DataError
from rlhf_lightning.types import Problem

PROBLEM = Problem("p", "2+2?", "4", {"place": "a.jsonl, line 1", "fields": {"level": 3, "answer": "the sum is 4"}})


@pytest.fixture
def function(tmp_path):
    """Makes a function from a file's text."""

    def make(text, name="reward"):
        (tmp_path / "my_reward.py").write_text(text)
        return UserFunction(f"{tmp_path / 'my_reward.py'}:{name}", "scorer function")

    return make


@pytest.mark.parametrize(
    ("definition", "score"),
    [
        (
            "def reward(prompt, response, answer, **f): return (prompt, response, answer) == ('2+2?', 'r', '4')",
            1,
        ),
        ("def reward(response, level, missing=7): return level + missing", 10),
        ("def reward(**everything): return len(everything)", 4),
        ("def reward(*, answer, **fields): return int(answer) + fields['level']", 7),
        ("from statistics import mean as reward_\nreward = lambda response: 2", 2),
        ("import functools\n@functools.cache\ndef reward(level): return level", 3),
        ("from functools import partial\ndef f(level, by): return level * by\nreward = partial(f, by=2)", 6),
    ],
)
def test_it_is_given_what_its_parameters_ask_for(function, definition, score):
    assert function(definition).verify(PROBLEM, "r") == score


def test_the_batch_form_has_a_parameter_called_responses(function):
    made = function("def reward(responses, answers, level, **f): return [len(r) + x for r, x in zip(responses, level)]")
    other = Problem("q", "?", "", {"fields": {}})
    assert made.batch
    with pytest.raises(TypeError, match="unsupported operand"):
        made.verify((PROBLEM, other), ("a", "bb"))  # the second row has no level: None
    assert made.verify((PROBLEM, PROBLEM), ("a", "bb")) == [4.0, 5.0]
    late = function("import functools\n@functools.cache\ndef reward(responses): return [1.0]")
    assert late.batch


@pytest.mark.parametrize(
    ("returned", "score"),
    [("True", 1.0), ("3", 3.0), ("np.float32(0.5)", 0.5), ("np.array(2)", 2.0), ("torch.tensor(0.25)", 0.25),
     ("np.bool_(True)", 1.0), ("torch.tensor(True)", 1.0)],
)  # fmt: skip
def test_numbers_of_all_kinds_are_scores(function, returned, score):
    made = function(f"import numpy as np, torch\ndef reward(response): return {returned}")
    value = made.verify(PROBLEM, "r")
    assert (value, type(value)) == (score, float)


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ("None", r"reward must return a number, and returned None \(NoneType\)"),
        ("'0.5'", r"returned '0.5' \(str\)"),
        ("[1.0]", r"returned \[1.0\] \(list\)"),
        ("1j", r"returned 1j \(complex\)"),
        ("torch.zeros(2)", r"returned tensor\(\[0., 0.\]\) \(Tensor\)"),
    ],
)
def test_what_is_no_number_is_named(function, returned, said):
    with pytest.raises(TypeError, match=said):
        function(f"import torch\ndef reward(response): return {returned}").verify(PROBLEM, "r")


@pytest.mark.parametrize(
    ("returned", "said"),
    [("[1.0]", "must return 2 scores, one a response, and returned 1"), ("0.5", r"returned 0.5 \(float\)"),
     ("None", r"returned None \(NoneType\)"), ("[1.0, None]", "must return a number, and returned None")],
)  # fmt: skip
def test_a_batch_returns_as_many_as_it_is_given(function, returned, said):
    made = function(f"def reward(responses): return {returned}")
    with pytest.raises(TypeError, match=said):
        made.verify((PROBLEM, PROBLEM), ("a", "b"))


def test_reading_a_configuration_only_parses_the_file(function, tmp_path):
    text = f"open({str(tmp_path / 'ran')!r}, 'w')\ndef reward(response, level=print('ran')): return 1.0"
    made = pickle.loads(pickle.dumps(function(text)))
    assert not (tmp_path / "ran").exists()
    assert made.verify(PROBLEM, "r") == 1.0
    assert (tmp_path / "ran").exists()


def test_it_imports_what_lies_beside_it(function, tmp_path):
    (tmp_path / "beside_my_reward.py").write_text("WORTH = 6")
    assert function("from beside_my_reward import WORTH\ndef reward(response): return WORTH").verify(PROBLEM, "") == 6


def test_an_exception_carries_its_line(function):
    with pytest.raises(ZeroDivisionError) as raised:
        function("def helper():\n    return 1 / 0\ndef reward(response):\n    return helper()").verify(PROBLEM, "r")
    assert raised.value.__notes__[0].endswith("my_reward.py, line 2")


@pytest.mark.parametrize(
    ("text", "name", "said"),
    [
        ("def reward(response): return 1\ndef other(): pass", "rewards",
         r"has no function 'rewards'\. Did you mean 'reward'\? Functions: reward, other"),
        ("def reward(response):\n    return (1", "reward", r"my_reward\.py, line 2: '\(' was never closed"),
        ("class reward: pass", "reward", "line 1: reward is a class; give it as class_path"),
        ("async def reward(response): pass", "reward", "line 1: reward is async; write a plain def"),
        ("def reward(response, /): pass", "reward", "called by keyword; take away the '/'"),
        ("def reward(*texts): pass", "reward", r"called by keyword; take away \*texts"),
    ],
)  # fmt: skip
def test_what_can_be_told_without_running_the_file_is(function, text, name, said):
    with pytest.raises(ConfigError, match=said):
        function(text, name)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import json\nimport no_such_package_anywhere\ndef reward(response): pass",
         "my_reward.py, line 2 cannot be imported: ModuleNotFoundError: No module named 'no_such_package_anywhere'"),
        ("raise SystemExit(3)\ndef reward(response): pass", "line 1 cannot be imported: SystemExit: 3"),
        ("reward = 3", "reward is no function"),
    ],
)  # fmt: skip
def test_what_fails_when_it_is_run_is_named_by_line(function, text, said):
    with pytest.raises(ConfigError, match=said):
        function(text).prepare()


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("my_reward.reward", r"path must be file\.py:function.*Did you mean 'my_reward\.py:reward'"),
        ("my_reward.py", r"path must be file\.py:function"),
        ("nowhere/my_reward.py:reward", "no such file"),
    ],
)
def test_the_path_is_a_file_and_a_name(path, said):
    with pytest.raises(ConfigError, match=said):
        UserFunction(path, "scorer function")


def test_columns_that_it_cannot_do_without(function):
    made = function("def reward(response, levels, other=1): return 1")
    with pytest.raises(ConfigError, match=r"asks for 'levels', but task t has no such column\. Did you mean 'level'"):
        made.check_fields(["level"], "task t")
    made.check_fields(["levels"], "task t")


def test_as_a_task_s_verifier(tmp_path):
    (tmp_path / "judge.py").write_text("def same(response, answer, unit): return response == f'{answer} {unit}'")
    rows = [{"question": f"Q{n}", "answer": n, "unit": "m"} for n in range(4)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = pickle.loads(pickle.dumps(JsonlTask(str(path), verifier=FunctionVerifier(f"{tmp_path / 'judge.py'}:same"))))
    problem = task.train_problems()[0]
    assert task.verify(problem, f"{problem.answer} m") == 1.0
    assert task.verify(problem, f"Answer: {problem.answer} m") == 0.0  # it reads the whole response
    patterned = JsonlTask(str(path), verifier=task.verifier, answer_pattern="Answer: (.*)")
    assert patterned.verify(problem, f"Answer: {problem.answer} m") == 1.0
    path.write_text(json.dumps({"question": "Q", "answer": 1}) + "\n")
    with pytest.raises(
        (ConfigError, DataError), match=r"asks for 'unit', but .*rows\.jsonl, line 1 has no such column"
    ):
        task.__class__(str(path), verifier=task.verifier).train_problems()
