"""Functions and classes of one's own, in the working folder, through ``rlhf`` itself."""

import json
import re

import pytest
import yaml

from rlhf_lightning.cli import main

REWARD = """
def reward(prompt, response, answer, **fields):
    assert fields["level"] in (0, 1)
    return len(response) / 10


def judge(response, answer):
    return answer in response
"""
CLASS = """
import torch
from rlhf_lightning.protocols import Scorer
from rlhf_lightning.types import Scores


class Longest(Scorer):
    name = "longest"

    def __init__(self, per_token: float = 1.0):
        self.per_token = per_token

    def __call__(self, rollout):
        values = rollout.lengths.float() * self.per_token
        return Scores(values, {self.name: values}, torch.zeros(len(values), dtype=torch.bool))
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A working folder with functions, a class, problems, and a configuration that names them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_reward_functions.py").write_text(REWARD)
    (tmp_path / "own_reward_classes.py").write_text(CLASS)
    rows = [{"question": f"{n}+1=", "answer": str(n + 1), "level": n % 2} for n in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "model": {
            "class_path": "GRPOModule",
            "init_args": {
                "policy": "tiny-llama",
                "sampler": {"name": "in_process", "max_new_tokens": 4},
                "scorers": [
                    {"name": "function", "path": "own_reward_functions.py:reward"},
                    "verifier",
                    {"class_path": "own_reward_classes.Longest", "init_args": {"per_token": 0.1}},
                ],
                "prompts_per_rollout": 2,
                "samples_per_prompt": 2,
                "updates_per_rollout": 1,
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-4}},
            },
        },
        "data": {
            "class_path": "PromptData",
            "init_args": {
                "task": {
                    "name": "jsonl",
                    "path": "rows.jsonl",
                    "verifier": {"name": "function", "path": "own_reward_functions.py:judge"},
                }
            },
        },
        "trainer": {"max_epochs": 1, "accelerator": "cpu"},
    }

    def write(**arguments):
        config["model"]["init_args"] |= arguments
        (tmp_path / "own.yaml").write_text(yaml.safe_dump(config))
        return tmp_path

    write.config = config
    return write


def test_three_lines_of_python_train_and_the_saved_configuration_goes_on(own, capsys):
    folder = own()
    assert main(["fit", "--config", "own.yaml"]) == 0
    samples = [json.loads(line) for line in (folder / "runs/own/samples.jsonl").read_text().splitlines()]
    for sample in samples:
        assert sample["scores"]["reward"] == pytest.approx(len(sample["response"]) / 10)
        assert sample["scores"]["longest"] == pytest.approx(sample["length"] / 10)
    saved = yaml.safe_load((folder / "runs/own/config.yaml").read_text())
    assert saved["model"]["init_args"]["scorers"][0]["init_args"]["path"] == "own_reward_functions.py:reward"
    assert saved["data"]["init_args"]["task"]["init_args"]["verifier"]["init_args"]["path"].endswith(
        "functions.py:judge"
    )
    again = ["fit", "--config", "runs/own/config.yaml", "--ckpt_path", "last", "--trainer.max_epochs=2"]
    assert main(again) == 0
    assert main(["plan", "--config", "runs/own/config.yaml", "--device", "cpu"]) == 0

    # Another's run folder: who takes its policy does not run its function.
    mark = folder / "it_ran"
    (folder / "own_reward_functions.py").write_text(f"open({str(mark)!r}, 'w')\n" + REWARD)
    from rlhf_lightning.cli.policies import find_policy
    from rlhf_lightning.models.run_policy import RunPolicy

    RunPolicy("runs/own").load()
    find_policy("runs/own", None).load()
    assert main(["export", "--model", "runs/own", "--out", "exported"]) == 0
    assert not mark.exists()


@pytest.mark.parametrize(
    ("scorer", "said"),
    [
        ({"name": "function", "path": "own_reward_functions.py:rewards"},
         "has no function 'rewards'. Did you mean 'reward'. Functions: reward, judge"),
        ({"name": "function", "path": "own_reward_function.py:reward"},
         "no such file.*The nearest file there is 'own_reward_functions.py'"),
        ("own_reward_functions.reward",
         "is not a class; for a function write {name: function, path: own_reward_functions.py:reward}"),
        ("own_reward_functions.py:reward",
         "is a file; for a function in it write {name: function, path: own_reward_functions.py:reward}"),
        ({"name": "function", "path": "own_reward_functions.py::reward"},
         "got 'own_reward_functions.py::reward'. Did you mean 'own_reward_functions.py:reward'"),
        ({"name": "function", "paths": "x"}, "takes no argument 'paths'. Did you mean 'path'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line_before_any_model_loads(own, capsys, scorer, said):
    own(scorers=[scorer])
    assert main(["fit", "--config", "own.yaml"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and re.search(said, lines[0]), lines


def test_a_syntax_error_names_file_and_line(own, capsys):
    folder = own()
    (folder / "own_reward_functions.py").write_text("def reward(response):\n    return (1\n")
    assert main(["fit", "--config", "own.yaml"]) == 2
    assert "own_reward_functions.py, line 2: '(' was never closed" in capsys.readouterr().err
