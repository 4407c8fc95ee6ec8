"""Everything a user can get wrong ends in one line on stderr that names key, place and the nearest valid choice."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli_fakes import FakeModule

FILE_CASES = {
    "unknown top-level key": (
        "trainer:",
        "trainr:",
        "edited.yaml:9: trainr: unknown key 'trainr'. Did you mean 'trainer'?",
    ),
    "unknown trainer key": ("max_epochs", "max_epoch", "edited.yaml:10: trainer.max_epoch: unknown key. Did you mean"),
    "unknown module argument": (
        "    kl_loss",
        "    kl_los",
        "edited.yaml:6: model.kl_los: FakeModule takes no argument 'kl_los'. Did you mean 'kl_loss'?",
    ),
    "unknown plug-in argument": (
        "eps:",
        "epz:",
        "edited.yaml:4: model.advantage.epz: Group takes no argument 'epz'. Did you mean 'eps'? Valid: eps",
    ),
    "unknown argument in a plain class": (
        "estimator",
        "estimater",
        "edited.yaml:6: model.kl_loss.estimater: KLTerm takes no argument 'estimater'. Did you mean 'estimator'?",
    ),
    "unknown plug-in": (
        "name: group",
        "name: grop",
        "edited.yaml:4: model.advantage: no advantage is called 'grop'. Did you mean 'group'? Known: ",
    ),
    "unknown plug-in in a list": (
        "[clip,",
        "[clipp,",
        "edited.yaml:5: model.reward_transforms: no reward_transform is called 'clipp'. Did you mean 'clip'?",
    ),
    "unknown plug-in further down": (
        "name: fixed",
        "name: fixd",
        "edited.yaml:6: model.kl_loss.controller: no kl_controller is called 'fixd'. Did you mean 'fixed'?",
    ),
    "plug-in of another kind": (
        "name: group, eps: 1e-5",
        "name: clip",
        "model.advantage: no advantage is called 'clip'",
    ),
    "class of another kind": (
        "{name: group, eps: 1e-5}",
        "{class_path: rlhf_lightning.algorithms.transforms.ClipRewards}",
        "edited.yaml:4: model.advantage: Import path rlhf_lightning.algorithms.transforms.ClipRewards does not",
    ),
    "class that is not there": (
        "name: group, eps: 1e-5",
        "class_path: no_such.Thing",
        "edited.yaml:4: model.advantage: no_such.Thing does not import: ModuleNotFoundError",
    ),
    "argument outside init_args": (
        "{name: group, eps: 1e-5}",
        "{class_path: rlhf_lightning.algorithms.advantages.Group, eps: 1}",
        "model.advantage.eps: arguments of Group belong under init_args",
    ),
    "no plug-in at all": (
        "{name: group, eps: 1e-5}",
        "3",
        "edited.yaml:4: model.advantage: expected a advantage: a name",
    ),
    "unknown module": (
        "cli_fakes.FakeModule",
        "FakeModul",
        "edited.yaml:2: model.class_path: no class is called 'FakeModul'.",
    ),
    "unknown callback": (
        "  logger: false",
        "  callbacks: [{class_path: RolloutChekpoint}]",
        "trainer.callbacks.class_path: no class is called 'RolloutChekpoint'. Did you mean 'RolloutCheckpoint'?",
    ),
    "wrong type in a plug-in": ("eps: 1e-5", "eps: abc", "edited.yaml:4: model.advantage.eps: expected float, got abc"),
    "wrong type further down": (
        "coefficient: 0.02",
        "coefficient: [1]",
        "edited.yaml:6: model.kl_loss.controller.coefficient: expected float, got [1]",
    ),
    "wrong type in the trainer": (
        "max_epochs: 2",
        "max_epochs: two",
        "edited.yaml:10: trainer.max_epochs: expected int or None, got two",
    ),
    "not one of the choices": (
        "k3",
        "k9",
        "edited.yaml:6: model.kl_loss.estimator: expected one of 'k1', 'k2', 'k3', got k9",
    ),
    "missing argument": ("    advantage: {name: group, eps: 1e-5}\n", "", "model: missing: advantage"),
    "value a constructor of ours refuses": (
        "coefficient: 0.02",
        "coefficient: -1",
        "coefficient must not be negative, got -1.0",
    ),
    "key given twice": ("trainer:\n", "model: 3\ntrainer:\n", "edited.yaml:9: key model is given twice"),
    "no YAML": ("trainer:\n", "trainer: [\n", "not valid YAML"),
    "a number where arguments are wanted": (
        "{estimator: k3, controller: {name: fixed, coefficient: 0.02}}",
        "0.1",
        "edited.yaml:6: model.kl_loss: expected a mapping of KLTerm's arguments, got 0.1. For example: {estimator: k3,",
    ),
    "a list where one is wanted": (
        "{name: group, eps: 1e-5}",
        "[group]",
        "edited.yaml:4: model.advantage: expected one advantage, not a list, got ['group']",
    ),
    "a list where arguments are wanted": (
        "{estimator: k3, controller: {name: fixed, coefficient: 0.02}}",
        "[k3]",
        "edited.yaml:6: model.kl_loss: expected a mapping of KLTerm's arguments, got ['k3']",
    ),
    "an argument of a part of the class": (
        "{estimator: k3, controller: {name: fixed, coefficient: 0.02}}",
        "{coefficient: 0.02}",
        "KLTerm takes no argument 'coefficient'. It is an argument of controller: controller.coefficient.",
    ),
    "the trainer is no mapping": ("trainer:\n", "run: 3\ntrainer:\n", "edited.yaml:9: run: must be a mapping, got 3"),
    "a list appended to that is none": (
        "  max_epochs: 2",
        "  max_epochs: 2\n  max_epochs+: 3",
        "trainer.max_epochs: expected int or None, got [2, 3]",
    ),
    "a misspelt list appended to": (
        "  logger: false",
        "  callback+: [HeldOutEval]",
        "edited.yaml:12: trainer.callback: unknown key. Did you mean 'trainer.callbacks'?",
    ),
    "unknown run key": (
        "trainer:\n",
        "run: {nam: x}\ntrainer:\n",
        "edited.yaml:9: run.nam: unknown key. Did you mean 'run.name'?",
    ),
}


@pytest.mark.parametrize(("old", "new", "expected"), FILE_CASES.values(), ids=FILE_CASES)
def test_mistakes_in_a_file(rlhf, edited, folder: Path, old, new, expected):
    assert expected in rlhf("fit", "--config", edited(old, new)).error
    assert not FakeModule.made


COMMAND_CASES = {
    "unknown plug-in": (
        ["--model.advantage=grop"],
        "command line: model.advantage: no advantage is called 'grop'. Did you mean 'group'?",
    ),
    "unknown plug-in added": (
        ["--model.reward_transforms+=whitn"],
        "no reward_transform is called 'whitn'. Did you mean 'whiten'?",
    ),
    "unknown plug-in argument": (
        ["--model.advantage.epz=1"],
        "command line: --model.advantage.epz: Group takes no argument 'epz'. Did you mean 'eps'?",
    ),
    "argument of another plug-in": (
        ["--model.kl_loss.controller.target=1"],
        "Fixed takes no argument 'target'. Valid: coefficient",
    ),
    "unknown module argument": (
        ["--model.lrr=1"],
        "command line: --model.lrr: FakeModule takes no argument 'lrr'. Did you mean 'lr'?",
    ),
    "unknown key": (["--modle.lr=1"], "unknown key '--modle'. Did you mean '--model'?"),
    "unknown trainer key": (
        ["--trainer.max_epoch", "2"],
        "--trainer.max_epoch: unknown key. Did you mean 'trainer.max_epochs'?",
    ),
    "wrong type": (["--model.advantage.eps=x"], "command line: model.advantage.eps: expected float, got x"),
    "wrong type, full key": (["--model.init_args.steps", "1.5"], "command line: model.steps: expected int, got 1.5"),
    "wrong trainer type": (["--trainer.max_epochs=x"], "command line: trainer.max_epochs: expected int or None, got x"),
    "a number for a KL term": (
        ["--model.kl_loss=0.1"],
        "command line: model.kl_loss: expected a mapping of KLTerm's arguments, got 0.1. For example: "
        "{estimator: k3, controller: {name: fixed, coefficient: 0.01}}. Valid: estimator, controller",
    ),
    "a name for a KL term": (
        ["--model.kl_loss", "k3"],
        "expected a mapping of KLTerm's arguments, got 'k3'. For example",
    ),
    "a number for a controller": (
        ["--model.kl_loss.controller=0.1"],
        "command line: model.kl_loss.controller: expected a kl_controller: a name, {name: …} or {class_path: …}, got "
        "0.1. For example: {name: adaptive, coefficient: 0.01}",
    ),
    "a number for a part": (["--model.advantage=3"], "got 3. For example: {name: gae, gamma: 1.0}"),
    "a list for a part": (["--model.advantage=[group]"], "expected one advantage, not a list, got ['group']"),
    "a number for the trainer": (["--trainer=3"], "command line: trainer: must be a mapping, got 3"),
    "a text for the run": (["--run=x"], "command line: run: must be a mapping, got 'x'"),
    "no value": (["--model.fail"], "command line: --model.fail needs a value"),
    "below what has nothing below": (["--model.kl_loss.estimator.x=3"], "estimator is 'k3', which has no 'x'"),
    "past the end of a list": (["--model.reward_transforms.7.low=1"], "7 is None, which has no 'low'"),
    "no dashes": (["lr=1"], "unexpected argument 'lr=1'"),
    "no such accelerator": (["--trainer.accelerator=gpuu"], "invalid accelerator name"),
    "no number of devices": (
        ["--trainer.devices=-3"],
        "trainer: `devices` selected with `CPUAccelerator` should be an",
    ),
    "no seed": (["--seed_everything=-1"], "seed_everything: -1 is not in bounds"),
    "a package that is missing": (
        ["--trainer.logger=cli_fakes.NeedsPackage"],
        "comet-ml is not installed: pip install",
    ),
    "value refused": (["--model.steps=0"], "steps must be at least 1, got 0"),
    "refused before training": (["--model.fail=true"], "prompts.jsonl:3: no field 'question'"),
    "no such checkpoint": (["--ckpt_path", "nope.ckpt"], "--ckpt_path: nope.ckpt does not exist"),
    "no last checkpoint": (["--ckpt_path", "last"], "--ckpt_path last: no checkpoint in runs/fake/checkpoints"),
    "name out of the root": (["--run.name=../other"], "run.name: '../other' must be a name inside run.root"),
    "root is a file": (["--run.root=fake.yaml"], "run folder fake.yaml/fake cannot be written"),
    "root cannot be made": (["--run.root=/dev/null/runs"], "run folder /dev/null/runs/fake cannot be written"),
}


@pytest.mark.parametrize(("words", "expected"), COMMAND_CASES.values(), ids=COMMAND_CASES)
def test_mistakes_on_the_command_line(rlhf, words, expected):
    assert expected in rlhf("fit", "--config", "fake.yaml", *words).error


def test_unknown_command(rlhf):
    assert rlhf("fitt").error.startswith("unknown command 'fitt'. Did you mean 'fit'? Commands: fit, validate")


def test_missing_config_names_the_nearest_and_the_shipped(rlhf):
    error = rlhf("fit", "--config", "fak.yaml").error
    assert "Did you mean 'fake.yaml'?" in error
    assert "tiny/sft.yaml" in error.partition("Shipped: ")[2]


@pytest.mark.parametrize(("words", "expected"), [([], "no model"), (["--config"], "--config needs a name")])
def test_nothing_to_train(rlhf, words, expected):
    assert rlhf("fit", *words).error.startswith(expected)


def test_a_run_is_never_overwritten(rlhf, folder: Path):
    rlhf("fit", "--config", "fake.yaml")
    before = {p: p.read_bytes() for p in (folder / "runs").rglob("*") if p.is_file()}
    error = rlhf("fit", "--config", "fake.yaml").error
    assert "run folder runs/fake exists already" in error
    assert "--ckpt_path last" in error
    assert "--run.name OTHER" in error
    assert {p: p.read_bytes() for p in (folder / "runs").rglob("*") if p.is_file()} == before


def test_a_foreign_checkpoint_does_not_open_a_used_folder(rlhf, folder: Path):
    rlhf("fit", "--config", "fake.yaml")
    (folder / "other.ckpt").write_bytes((folder / "runs/fake/checkpoints/last.ckpt").read_bytes())
    assert "exists already" in rlhf("fit", "--config", "fake.yaml", "--ckpt_path", "other.ckpt").error


def test_last_names_the_nearest_run_that_has_one(rlhf):
    rlhf("fit", "--config", "fake.yaml", "--run.name=mine")
    error = rlhf("fit", "--config", "fake.yaml", "--run.name=mne", "--ckpt_path", "last").error
    assert "nearest: mine" in error


def test_a_bug_is_shown_with_its_traceback_and_cause(rlhf):
    with pytest.raises(AttributeError, match="a bug of ours"):
        rlhf("fit", "--config", "fake.yaml", "--model.steps=13")


def test_traceback_on_demand(rlhf, monkeypatch):
    monkeypatch.setenv("RLHF_TRACEBACK", "1")
    with pytest.raises(Exception, match="no advantage is called"):
        rlhf("fit", "--config", "fake.yaml", "--model.advantage=grop")


def test_in_a_process_of_its_own(folder: Path, edited):
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": str(here)}
    command = [sys.executable, "-m", "rlhf_lightning.cli", "fit", "--config", edited("name: group", "name: grop")]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: edited.yaml:4: model.advantage: no advantage is called 'grop'.")
    assert done.stderr.count("\n") == 1
