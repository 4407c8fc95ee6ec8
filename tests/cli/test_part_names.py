"""Estimators, losses and samplers by their names: in a configuration, nested too, and in the list of plug-ins."""

from __future__ import annotations

import pytest
import yaml

from rlhf_lightning.configfiles import find_config

PARTS = {
    "advantage": [
        "reinforce_plus_plus",
        "reinforce_plus_plus_baseline",
        "remax",
        "opo",
        {"name": "process", "eps": 0.1},
    ],
    "policy_loss": [
        "gspo",
        "cispo",
        {"name": "clip_cov", "share": 0.01},
        {"name": "kl_cov", "beta": 2.0},
        "importance",
    ],
    "sampler": ["dynamic"],
}
CLASSES = {
    "reinforce_plus_plus": "algorithms.advantages.ReinforcePlusPlus",
    "reinforce_plus_plus_baseline": "algorithms.advantages.ReinforcePlusPlusBaseline",
    "remax": "algorithms.advantages.ReMax",
    "opo": "algorithms.advantages.OPO",
    "process": "algorithms.advantages.Process",
    "gspo": "algorithms.losses.GSPO",
    "cispo": "algorithms.losses.CISPO",
    "clip_cov": "algorithms.losses.ClipCov",
    "kl_cov": "algorithms.losses.KLCov",
    "importance": "algorithms.losses.Importance",
    "dynamic": "samplers.dynamic.DynamicSampler",
}


@pytest.fixture
def printed(rlhf, folder):
    """The resolved module arguments of the tiny configuration with some changed."""

    def resolve(**changed):
        config = yaml.safe_load(find_config("tiny/grpo.yaml").read_text())
        config["model"]["init_args"] |= changed
        (folder / "parts.yaml").write_text(yaml.safe_dump(config))
        outcome = rlhf("fit", "--config", "parts.yaml", "--print_config")
        assert outcome.code == 0, outcome.err
        return yaml.safe_load(outcome.out)["model"]["init_args"]

    return resolve


@pytest.mark.parametrize(("key", "part"), [(key, part) for key, parts in PARTS.items() for part in parts])
def test_names_become_class_paths_with_their_arguments(printed, key, part):
    arguments = dict(part) if isinstance(part, dict) else {"name": part}
    found = printed(**{key: part})[key]
    assert found["class_path"] == "rlhf_lightning." + CLASSES[arguments.pop("name")]
    assert arguments.items() <= found.get("init_args", {}).items()


def test_a_loss_inside_a_loss_and_a_sampler_inside_a_sampler(printed):
    found = printed(
        policy_loss={"name": "importance", "loss": {"name": "gspo", "low": 0.01}, "level": "sequence", "high": 3.0},
        sampler={"name": "dynamic", "sampler": {"name": "in_process", "max_new_tokens": 5}, "max_rounds": 2},
    )
    loss, sampler = found["policy_loss"]["init_args"], found["sampler"]["init_args"]
    assert loss["loss"]["class_path"].endswith("losses.GSPO") and loss["loss"]["init_args"]["low"] == 0.01
    assert (loss["level"], loss["high"], sampler["max_rounds"]) == ("sequence", 3.0, 2)
    assert sampler["sampler"]["init_args"]["max_new_tokens"] == 5


def test_bad_arguments_are_one_line_that_names_the_part_and_the_range(rlhf, folder, printed):
    printed()
    config = yaml.safe_load((folder / "parts.yaml").read_text())
    config["model"]["init_args"]["policy_loss"] = {"name": "gspo", "low": 2.0}
    (folder / "parts.yaml").write_text(yaml.safe_dump(config))
    outcome = rlhf("fit", "--config", "parts.yaml")
    assert "policy loss gspo: low must be in (0, 1) and high above 0, got 2.0" in outcome.error


def test_all_are_listed(rlhf):
    """Whole names, on a terminal of 80 columns too."""
    listed = rlhf("plugins").out
    assert [name for name in [*CLASSES, "soft_overlong"] if name not in listed] == []
