"""Built-ins: each registers by itself, and keeps its kind's contract."""

from __future__ import annotations

import pytest

from rlhf_lightning.plugins import BUILTIN_PACKAGES, load_builtins
from rlhf_lightning.registry import KINDS, plugins, resolve
from rlhf_lightning.testing import check_plugin

PURE_KINDS = ("advantage", "reward_transform", "policy_loss", "value_loss", "kl_controller")
ARGUMENTS = {"soft_overlong": {"max_length": 5, "buffer": 2}}
"""For those that cannot be made without."""

load_builtins()


def test_every_file_of_the_built_in_packages_is_imported():
    loaded = load_builtins()
    assert {"rlhf_lightning.algorithms.advantages", "rlhf_lightning.samplers.in_process"} <= set(loaded)
    for package in BUILTIN_PACKAGES:
        assert any(name.startswith(f"rlhf_lightning.{package}.") for name in loaded)
    assert all(name.startswith(tuple(f"rlhf_lightning.{package}." for package in BUILTIN_PACKAGES)) for name in loaded)
    assert not any(part.startswith("_") for name in loaded for part in name.split("."))


def test_the_names_of_the_design_are_there():
    wanted = {"gae", "group", "group_center", "rloo", "reinforce", "remax", "opo", "process"}
    assert wanted | {"reinforce_plus_plus", "reinforce_plus_plus_baseline"} <= set(plugins("advantage"))
    assert set(plugins("value_loss")) == {"clipped"}
    wanted = {"clip", "group_normalize", "asymmetric_shrink", "whiten", "length_penalty", "missing_eos_penalty"}
    assert wanted | {"soft_overlong"} <= set(plugins("reward_transform"))
    assert {"clip", "gspo", "cispo", "clip_cov", "kl_cov", "importance"} <= set(plugins("policy_loss"))
    assert {"fixed", "adaptive"} <= set(plugins("kl_controller"))
    assert {"in_process", "scripted", "dynamic"} <= set(plugins("sampler"))
    sources = {"demonstrations", "solutions", "preferences", "prm800k", "math_shepherd", "steps"}
    assert sources <= set(plugins("reward_data"))


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in KINDS for name in plugins(kind)])
def test_built_ins_inherit_from_their_kind_and_say_what_they_do(kind, name):
    info = plugins(kind)[name]
    assert issubclass(resolve(kind, name), KINDS[kind])
    assert info.origin == "built-in"
    assert len(info.doc) > 10


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in PURE_KINDS for name in plugins(kind)])
def test_built_ins_keep_their_contract(kind, name):
    cls = resolve(kind, name)
    report = check_plugin(cls, make=lambda: cls(**ARGUMENTS.get(name, {})))
    assert [r for r in report.results if not r.passed] == []
    assert len(report.results) > 3


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("sampler", "in_process"),
        ("sampler", "dynamic"),
        ("model_source", "tiny-llama"),
    ],
)
def test_built_ins_with_models_keep_their_contract(kind, name):
    assert [r for r in check_plugin(resolve(kind, name)).results if not r.passed] == []
