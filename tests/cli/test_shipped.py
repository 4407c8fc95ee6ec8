"""Every shipped configuration is one that this version accepts."""

from __future__ import annotations

import pytest
import yaml

from rlhf_lightning.configfiles import find_config, shipped_configs


def test_the_defaults_are_shipped():
    assert {"quickstart.yaml", "tiny/sft.yaml"} <= set(shipped_configs())


def command_of(name: str) -> str:
    """The command that a configuration is for: the job it names, else ``fit``."""
    return yaml.safe_load(find_config(name).read_text()).get("job", "fit")


JOBS = [name for name in shipped_configs() if command_of(name) != "fit"]


@pytest.mark.parametrize("name", JOBS)
def test_a_jobs_is_accepted_by_its_command(rlhf, name):
    command = command_of(name)
    outcome = rlhf(command, "--config", name, "--print_config")
    assert outcome.code == 0, outcome.err
    assert yaml.safe_load(outcome.out)["job"] == command


@pytest.mark.parametrize("name", [name for name in shipped_configs() if name not in JOBS])
def test_it_is_accepted_and_resolved(rlhf, name):
    outcome = rlhf("fit", "--config", name, "--print_config")
    assert outcome.code == 0, outcome.err
    printed = yaml.safe_load(outcome.out)
    assert printed["model"]["class_path"].startswith("rlhf_lightning.modules.")
    assert printed["run"]["name"] == find_config(name).stem
