"""``data: RewardData`` and its sources, by file and command line."""

from __future__ import annotations

import json

import pytest
from cli_fakes import FakeRewardModule

from rlhf_lightning.data.reward_data import RewardData
from rlhf_lightning.data.reward_sources.responses import Demonstrations, Solutions
from rlhf_lightning.data.tasks import ChainedArithmetic

CONFIG = """\
model:
  class_path: cli_fakes.FakeRewardModule
data:
  class_path: RewardData
  init_args:
    sources:
      - name: demonstrations
        task: {name: chained_arithmetic, held_out: 4}
        size: 50
      - {name: solutions, path: no-such-file.jsonl, max_solutions: 5}
    proportions: [0.7, 0.3]
trainer: {max_epochs: 1, accelerator: cpu, logger: false, enable_progress_bar: false}
"""


@pytest.fixture(autouse=True)
def config(folder, monkeypatch):
    monkeypatch.setattr(FakeRewardModule, "data", [])
    (folder / "rm.yaml").write_text(CONFIG)


def made():
    (data,) = FakeRewardModule.data
    assert isinstance(data, RewardData)
    return data


def test_sources_are_built_from_their_short_forms_without_their_files(rlhf):
    assert rlhf("fit", "--config", "rm.yaml").code == 0
    demonstrations, solutions = made().sources
    assert isinstance(demonstrations, Demonstrations)
    assert isinstance(demonstrations.task, ChainedArithmetic)
    assert (demonstrations.size, demonstrations.task.held_out) == (50, 4)
    assert isinstance(solutions, Solutions)
    assert (solutions.path, solutions.max_solutions) == ("no-such-file.jsonl", 5)
    assert made().proportions == [0.7, 0.3]


def test_sources_on_the_command_line(rlhf):
    words = ["--data.sources=[{name: solutions, path: [a.jsonl, b.jsonl]}]", "--data.proportions=[1]"]
    assert rlhf("fit", "--config", "rm.yaml", *words, "--data.delimiter=;").code == 0
    (source,) = made().sources
    assert source.path == ["a.jsonl", "b.jsonl"]
    assert made().delimiter == ";"


def test_a_source_may_be_appended_on_the_command_line(rlhf):
    more = ["--data.sources+={name: solutions, path: c.jsonl, label: code}", "--data.proportions=[0.4, 0.3, 0.3]"]
    assert rlhf("fit", "--config", "rm.yaml", *more).code == 0
    assert [source.label for source in made().sources] == ["chained_arithmetic", "solutions", "code"]


def test_a_data_module_without_its_package_and_saved_configurations_read_back(rlhf, folder):
    assert rlhf("fit", "--config", "rm.yaml", "--run.name=first").code == 0
    saved = next(folder.rglob("config.yaml"))
    assert "rlhf_lightning.data.reward_sources.responses.Demonstrations" in saved.read_text()
    FakeRewardModule.data.clear()
    assert rlhf("fit", "--config", str(saved), "--run.name=second").code == 0
    assert [source.label for source in made().sources] == ["chained_arithmetic", "solutions"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("RewardData", "RewardDta", "data.class_path: no class is called 'RewardDta'. Did you mean 'RewardData'?"),
        ("demonstrations", "demonstration", "no reward_data is called 'demonstration'. Did you mean 'demonstrations'?"),
        ("max_solutions", "max_solution", "Solutions takes no argument 'max_solution'. Did you mean 'max_solutions'?"),
        (
            "chained_arithmetic",
            "chained_arith",
            "no task is called 'chained_arith'. Did you mean 'chained_",
        ),
        ("[0.7, 0.3]", "[0.7]", "proportions has 1 numbers for 2 sources"),
        ("max_solutions: 5", "on_bad_row: ship", "on_bad_row: there is no 'ship'. Did you mean 'skip'?"),
    ],
)
def test_what_is_wrong_is_named_with_the_nearest_choice(rlhf, folder, old, new, message):
    (folder / "bad.yaml").write_text(CONFIG.replace(old, new))
    assert message in rlhf("fit", "--config", "bad.yaml").error


def test_solutions_in_a_file_are_read_when_the_data_is_bound(rlhf, folder):
    row = {"task": "sums", "id": "p", "question": "1+1=", "response": "2", "correct": 1.0}
    (folder / "no-such-file.jsonl").write_text(json.dumps(row) + "\n")
    assert rlhf("fit", "--config", "rm.yaml").code == 0
    source = made().sources[1]
    source.open()
    assert source.group(0).task == "sums"
