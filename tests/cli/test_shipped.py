"""Every shipped configuration is one that this version accepts."""

from __future__ import annotations

import pytest
import yaml

from rlhf_lightning.configfiles import find_config, shipped_configs


def test_the_defaults_are_shipped():
    assert {"quickstart.yaml", "tiny/sft.yaml"} <= set(shipped_configs())


@pytest.mark.parametrize("name", shipped_configs())
def test_it_is_accepted_and_resolved(rlhf, name):
    outcome = rlhf("fit", "--config", name, "--print_config")
    assert outcome.code == 0, outcome.err
    printed = yaml.safe_load(outcome.out)
    assert printed["model"]["class_path"].startswith("rlhf_lightning.modules.")
    assert printed["run"]["name"] == find_config(name).stem
