"""A saved configuration says what ran, and is one that every command takes again."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from rlhf_lightning import registry
from rlhf_lightning.algorithms.kl import KLTerm
from rlhf_lightning.cli.plans import ParsedConfig, module_of
from rlhf_lightning.cli.run_module import policy_module
from rlhf_lightning.cli.signatures import import_class, path_of, signature
from rlhf_lightning.evaluation.best_of_n import BestOfN
from rlhf_lightning.labelling.sample import SampleSolutions
from rlhf_lightning.labelling.steps import LabelSteps
from rlhf_lightning.modules import GRPOModule, PPOModule, RewardModel, SFTModule
from rlhf_lightning.plugins import load_builtins
from rlhf_lightning.runs import Run
from rlhf_lightning.serving import ServePolicy

PROMPTS = {"class_path": "PromptData", "init_args": {"task": "chained_arithmetic"}}
DEMONSTRATIONS = {"class_path": "DemonstrationData", "init_args": {"task": "chained_arithmetic"}}
JUDGED = {
    "class_path": "RewardData",
    "init_args": {"sources": [{"name": "demonstrations", "task": "chained_arithmetic"}]},
}
BARE = {
    "GRPOModule": ({"policy": "embedded-arithmetic"}, PROMPTS),
    "PPOModule": ({"policy": "embedded-arithmetic"}, PROMPTS),
    "SFTModule": ({"policy": "embedded-arithmetic"}, DEMONSTRATIONS),
    "RewardModel": ({"backbone": "embedded-arithmetic"}, JUDGED),
}
"""Only what must be given, by module."""

EXPECTED = {
    "GRPOModule": {
        "sampler": "InProcessSampler",
        "scorers": ["VerifierScorer"],
        "reward_transforms": [],
        "advantage": "Group",
        "policy_loss": "Clip",
        "optimizer": ("AdamW", 1e-6),
    },
    "PPOModule": {
        "sampler": "InProcessSampler",
        "scorers": ["VerifierScorer"],
        "reward_transforms": [],
        "advantage": "GAE",
        "policy_loss": "Clip",
        "value_loss": "ClippedValue",
        "optimizer": ("AdamW", 1e-6),
    },
    "SFTModule": {"sampler": "InProcessSampler", "optimizer": ("AdamW", 1e-5)},
    "RewardModel": {"optimizer": ("AdamW", 9e-6)},
}
"""What the docstrings say runs where nothing is given."""


def written(name: str, **more: Any) -> str:
    arguments, data = BARE[name]
    module = {"class_path": name, "init_args": {**arguments, **more}}
    Path("bare.yaml").write_text(yaml.safe_dump({"model": module, "data": data, "trainer": {"accelerator": "cpu"}}))
    return "bare.yaml"


def shown(value: Any) -> Any:
    """A part by its class's name; an optimizer with its learning rate."""
    if isinstance(value, list):
        return [shown(item) for item in value]
    name = value["class_path"].rpartition(".")[2]
    return (name, value["init_args"]["lr"]) if "lr" in value.get("init_args", {}) else name


@pytest.mark.parametrize("name", BARE)
def test_the_bare_minimum_is_saved_with_all_that_ran_and_saved_the_same_again(rlhf, folder, name):
    first = rlhf("fit", "--config", written(name), "--print_config")
    assert first.code == 0 and first.err == ""
    arguments = yaml.safe_load(first.out)["model"]["init_args"]
    assert {key: shown(arguments[key]) for key in EXPECTED[name]} == EXPECTED[name]
    Path("bare.yaml").write_text(first.out)
    assert rlhf("fit", "--config", "bare.yaml", "--print_config").out == first.out


@pytest.mark.parametrize("name", BARE)
def test_python_and_a_configuration_run_the_same(folder, name):
    load_builtins()
    source = registry.resolve("model_source", "embedded-arithmetic")()
    cls = {c.__name__: c for c in (GRPOModule, PPOModule, SFTModule, RewardModel)}[name]
    direct, configured = cls(source), module_of(ParsedConfig(["--config", written(name)]).values)
    groups = [{"name": "all", "params": [torch.nn.Parameter(torch.zeros(1))]}]
    settings = [module.make_optimizer(groups).param_groups[0] for module in (direct, configured)]
    assert [{**group, "params": None} for group in settings] == [{**settings[0], "params": None}] * 2
    parts = [key for key in ("sampler", "advantage", "policy_loss", "value_loss") if hasattr(direct, key)]
    assert [type(getattr(direct, key)) for key in parts] == [type(getattr(configured, key)) for key in parts]
    if hasattr(direct, "scorer"):
        assert [type(s) for s in direct.scorer.scorers] == [type(s) for s in configured.scorer.scorers]


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_every_command_of_the_trainer_takes_it(rlhf, folder, command):
    saved = rlhf("fit", "--config", written("PPOModule"), "--print_config").out
    (folder / "saved.yaml").write_text(saved)
    outcome = rlhf(command, "--config", "saved.yaml", "--print_config")
    assert outcome.code == 0, outcome.err
    assert yaml.safe_load(outcome.out)["model"] == yaml.safe_load(saved)["model"]


SMALL = ["--trainer.max_epochs=1", "--model.sampler.max_new_tokens=4", "--model.prompts_per_rollout=4"]
SMALL += ["--model.samples_per_prompt=2", "--model.updates_per_rollout=1", "--data.task.held_out=4"]


def test_a_run_without_an_optimizer_is_tested_planned_exported_and_answers(rlhf, folder):
    run, config = folder / "runs/bare", "runs/bare/config.yaml"
    assert rlhf("fit", "--config", written("PPOModule"), *SMALL).code == 0
    assert "Unable to serialize" not in (run / "config.yaml").read_text()
    assert rlhf("test", "--config", config, "--ckpt_path", "last").code == 0
    assert "fits" in rlhf("plan", "--config", config).out
    for part in ("policy", "critic"):
        outcome = rlhf("export", "--model", "runs/bare", "--part", part, "--out", f"out/{part}")
        assert outcome.code == 0 and list((folder / "out" / part).glob("*.safetensors"))
    assert rlhf("generate", "--model", "runs/bare", "--prompt", "1+2+3=", "--max_new_tokens", "2").code == 0
    assert type(policy_module(Run(run))) is PPOModule  # what rlhf replay begins with
    again = rlhf("fit", "--config", config, "--run.name=again")
    assert again.code == 0
    first, second = ((folder / "runs" / name / "config.yaml").read_text() for name in ("bare", "again"))
    assert second == first.replace("name: bare", "name: again")


def test_runs_saved_when_the_optimizer_could_not_be_are_read(rlhf, folder):
    saved = yaml.safe_load(rlhf("fit", "--config", written("GRPOModule"), "--print_config").out)
    saved["model"]["init_args"] |= {
        "optimizer": "Unable to serialize instance <function PolicyModule.<lambda> at 0x7f7837f5b060>",
        "policy_loss": None,
        "advantage": None,
    }
    (folder / "old").mkdir()
    (folder / "old/config.yaml").write_text(yaml.safe_dump(saved))
    outcome = rlhf("fit", "--config", "old/config.yaml", "--print_config")
    arguments = yaml.safe_load(outcome.out)["model"]["init_args"]
    assert shown(arguments["optimizer"]) == ("AdamW", 1e-6) and shown(arguments["policy_loss"]) == "Clip"
    assert type(policy_module(Run(folder / "old"))) is GRPOModule


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"kl_loss": {}}, ("k3", "Fixed")),
        ({"kl_reward": {"controller": "adaptive"}}, ("k1", "Adaptive")),
        ({"kl_loss": {"class_path": "rlhf_lightning.algorithms.kl.KLTerm"}}, ("k3", "Fixed")),
    ],
)
def test_parts_of_parts_are_written_out(rlhf, folder, given, expected):
    outcome = rlhf("fit", "--config", written("GRPOModule", **given), "--print_config")
    term = yaml.safe_load(outcome.out)["model"]["init_args"][next(iter(given))]
    term = term.get("init_args", term)
    assert (term["estimator"], shown(term["controller"])) == expected


def test_a_samplers_sampler_and_a_losss_loss_are_written_out(rlhf, folder):
    outcome = rlhf(
        "fit", "--config", written("GRPOModule", sampler="dynamic", policy_loss="importance"), "--print_config"
    )
    arguments = yaml.safe_load(outcome.out)["model"]["init_args"]
    assert shown(arguments["sampler"]["init_args"]["sampler"]) == "InProcessSampler"
    assert shown(arguments["policy_loss"]["init_args"]["loss"]) == "Clip"


def test_a_defaults_arguments_may_be_changed_without_naming_it(rlhf, folder):
    name = written("GRPOModule", advantage={"eps": 0.5}, optimizer={"lr": 0.25})
    words = ["--model.policy_loss.low=0.1", "--model.optimizer.eps=0.125", "--model.sampler={max_new_tokens: 3}"]
    arguments = yaml.safe_load(rlhf("fit", "--config", name, *words, "--print_config").out)["model"]["init_args"]
    assert shown(arguments["advantage"]) == "Group" and arguments["advantage"]["init_args"]["eps"] == 0.5
    assert arguments["policy_loss"]["init_args"]["low"] == 0.1
    assert arguments["sampler"]["init_args"]["max_new_tokens"] == 3
    optimizer = arguments["optimizer"]["init_args"]
    assert [optimizer[key] for key in ("lr", "eps", "betas", "weight_decay")] == [0.25, 0.125, [0.9, 0.95], 0.0]


def test_another_module_on_the_command_line_brings_its_own_defaults(rlhf, folder):
    outcome = rlhf("fit", "--config", written("GRPOModule"), "--model=PPOModule", "--print_config")
    arguments = yaml.safe_load(outcome.out)["model"]["init_args"]
    assert {key: shown(arguments[key]) for key in EXPECTED["PPOModule"]} == EXPECTED["PPOModule"]


NOTHING = {
    "kl_loss": "no KL penalty in the loss",
    "kl_reward": "no KL penalty in the reward",
    "reference": "the policy's own start, which is no source and costs no second model where there are adapters",
    "critic": "the policy's source, whose weights the critic shares where there are adapters",
    "metrics": "no further metrics",
    "lora": "no adapters",
    "task": "none: the examples come from a file",
}
"""Arguments that take a part, and what None means for them where it does not stand for one."""


def test_no_constructor_hides_which_part_it_takes():
    """An argument that takes a part, and may be None, declares which part that is, or that it is none."""
    load_builtins()
    jobs = [SampleSolutions, LabelSteps, BestOfN, ServePolicy]
    classes = [GRPOModule, PPOModule, SFTModule, RewardModel, KLTerm, *jobs]
    classes += [import_class(info.target, "") for kind in registry.KINDS for info in registry.plugins(kind).values()]
    bases, seen = (*registry.KINDS.values(), KLTerm), 0
    for cls in classes:
        for name, parameter in inspect.signature(cls).parameters.items():
            assert not callable(parameter.default) or parameter.default is parameter.empty, (cls, name)
            hint = str(signature(cls).hints.get(name))
            if parameter.default is None and any(base.__name__ in hint or path_of(base) in hint for base in bases):
                seen += 1
                assert name in signature(cls).chosen or name in NOTHING, f"{path_of(cls)}: {name}"
    assert seen > 15


def test_what_a_class_declares_is_what_it_makes():
    load_builtins()
    importance, dynamic = registry.resolve("policy_loss", "importance"), registry.resolve("sampler", "dynamic")
    assert path_of(type(importance().loss)) == signature(importance).chosen["loss"]["class_path"]
    assert path_of(type(dynamic().sampler)) == signature(dynamic).chosen["sampler"]["class_path"]
    assert path_of(type(KLTerm().controller)) == signature(KLTerm).chosen["controller"]["class_path"]
    assert KLTerm().controller is not KLTerm().controller
