"""Every shipped configuration is one that this version accepts."""

from __future__ import annotations

import pytest
import yaml

from rlhf_lightning.cli import main
from rlhf_lightning.configfiles import find_config, shipped_configs
from rlhf_lightning.strategies.names import STRATEGIES


def test_the_defaults_are_shipped():
    assert {"quickstart.yaml", "tiny/sft.yaml"} <= set(shipped_configs())


def command_of(name: str) -> str:
    """The command that a configuration is for: the job it names, else ``fit``."""
    return yaml.safe_load(find_config(name).read_text()).get("job", "fit")


JOBS = [name for name in shipped_configs() if command_of(name) != "fit"]
OVERLAYS = [name for name in shipped_configs() if name.startswith("strategies/")]


@pytest.mark.parametrize("name", JOBS)
def test_a_jobs_is_accepted_by_its_command_and_saved_the_same_again(rlhf, folder, name):
    command = command_of(name)
    outcome = rlhf(*command.split(), "--config", name, "--print_config")
    assert outcome.code == 0, outcome.err
    assert yaml.safe_load(outcome.out)["job"] == command
    (folder / "saved.yaml").write_text(outcome.out)
    assert rlhf(*command.split(), "--config", "saved.yaml", "--print_config").out == outcome.out


@pytest.mark.parametrize("name", [name for name in shipped_configs() if name not in [*JOBS, *OVERLAYS]])
def test_it_is_accepted_and_resolved_and_saved_the_same_again(rlhf, folder, name):
    outcome = rlhf("fit", "--config", name, "--print_config")
    assert outcome.code == 0, outcome.err
    printed = yaml.safe_load(outcome.out)
    assert printed["model"]["class_path"].startswith("rlhf_lightning.modules.")
    assert printed["run"]["name"] == find_config(name).stem
    assert "Unable to serialize" not in outcome.out + outcome.err
    (folder / "saved.yaml").write_text(outcome.out)
    assert rlhf("fit", "--config", "saved.yaml", "--print_config").out == outcome.out


@pytest.mark.parametrize("name", OVERLAYS)
def test_a_strategys_is_accepted_after_a_runs(rlhf, name):
    outcome = rlhf("fit", "--config", "quickstart.yaml", "--config", name, "--print_config")
    assert outcome.code == 0, outcome.err
    printed, own = yaml.safe_load(outcome.out), yaml.safe_load(find_config(name).read_text())
    assert printed["trainer"]["strategy"] == own["trainer"]["strategy"] or (
        own["trainer"]["strategy"]["init_args"].items() <= printed["trainer"]["strategy"]["init_args"].items()
    )
    assert (printed["trainer"]["devices"], printed["run"]["name"]) == ("auto", "quickstart")


def test_there_is_one_for_each_strategy():
    assert {find_config(name).stem for name in OVERLAYS} == {"ddp", *STRATEGIES}


def shipped(name):
    return yaml.safe_load(find_config(name).read_text())


def test_the_tiny_pipeline_is_connected():
    """Each part reads what the one before writes, as in the paper: solutions, labels of their steps, reward models."""
    solutions, steps = shipped("tiny/sample.yaml")["out"], shipped("tiny/label_steps.yaml")
    sources = {name: shipped(f"tiny/{name}.yaml")["data"]["init_args"]["sources"] for name in ("orm", "prm")}
    assert sources == {
        "orm": [{"name": "solutions", "path": solutions}],
        "prm": [{"name": "solutions", "path": steps["out"]}],
    }
    assert steps["solutions"] == solutions
    made = {f"runs/{name}/reward_model" for name in sources}
    assert set(shipped("tiny/best_of_n.yaml")["reward_models"].values()) == made
    trained_on = {
        part["path"] for name in ("grpo_orm", "grpo_prm", "ppo_orm")
        for part in shipped(f"tiny/{name}.yaml")["model"]["init_args"]["scorers"] if "path" in part
    }  # fmt: skip
    assert trained_on == made


def test_what_writes_the_solutions_that_are_missing_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "--config", "tiny/orm.yaml"]) == 2
    said = capsys.readouterr().err
    assert "data/tiny-solutions.jsonl" in said and "rlhf sample --config tiny/sample.yaml" in said
