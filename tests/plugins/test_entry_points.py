"""Plug-ins of other packages: found without import, imported when used, and one broken one spoils nothing."""

from __future__ import annotations

import sys

import pytest

from conftest import GOOD
from rlhf_lightning.errors import DuplicatePluginError, PluginImportError, UnknownPluginError
from rlhf_lightning.plugins import load_builtins
from rlhf_lightning.registry import plugins, resolve


@pytest.fixture(autouse=True)
def builtins() -> None:
    load_builtins()


def test_found_without_being_imported(distribution):
    distribution("demo-dist", {"advantage": {"scaled": "demo_good:Scaled"}}, demo_good=GOOD)
    info = plugins("advantage")["scaled"]
    assert info.origin == "package demo-dist 1.2"
    assert info.target == "demo_good.Scaled"
    assert "demo_good" not in sys.modules


def test_imported_when_used(distribution):
    distribution("demo-dist", {"advantage": {"scaled": "demo_good:Scaled"}}, demo_good=GOOD)
    found = resolve("advantage", "scaled")
    assert found is sys.modules["demo_good"].Scaled
    assert plugins("advantage")["scaled"].doc == "Rewards times a factor."


def test_a_broken_one_is_named_with_its_distribution_and_the_others_still_work(distribution):
    distribution(
        "demo-dist",
        {"advantage": {"scaled": "demo_good:Scaled", "broken": "demo_broken:Thing", "gone": "demo_good:Gone"}},
        demo_good=GOOD,
        demo_broken="import no_such_module",
    )
    assert {"broken", "gone", "group", "scaled"} <= set(plugins("advantage"))
    with pytest.raises(
        PluginImportError, match=r"'broken' \(demo_broken:Thing of package demo-dist 1.2\).*no_such_module"
    ):
        resolve("advantage", "broken")
    with pytest.raises(PluginImportError, match=r"'gone' .*demo-dist 1.2.*AttributeError"):
        resolve("advantage", "gone")
    assert resolve("advantage", "scaled").__name__ == "Scaled"
    assert resolve("advantage", "group").__name__ == "Group"


def test_something_else_than_a_class(distribution):
    distribution("demo-dist", {"advantage": {"three": "demo_three:three"}}, demo_three="three = 3")
    with pytest.raises(PluginImportError, match="not a class"):
        resolve("advantage", "three")


def test_a_name_of_two_packages_names_both(distribution):
    distribution("demo-one", {"advantage": {"scaled": "demo_good:Scaled"}}, demo_good=GOOD)
    distribution("demo-two", {"advantage": {"scaled": "demo_other:Scaled"}}, demo_other=GOOD)
    with pytest.raises(DuplicatePluginError) as caught:
        resolve("advantage", "scaled")
    assert "demo_good.Scaled" in str(caught.value)
    assert "demo_other.Scaled" in str(caught.value)
    assert "package demo-" in str(caught.value)
    assert resolve("policy_loss", "clip").__name__ == "Clip"


def test_a_built_ins_name_is_not_taken_over(distribution):
    distribution("demo-dist", {"advantage": {"group": "demo_good:Scaled"}}, demo_good=GOOD)
    with pytest.raises(
        DuplicatePluginError, match=r"algorithms\.advantages\.Group and demo_good\.Scaled of package demo-dist"
    ):
        resolve("advantage", "group")


def test_did_you_mean_knows_other_packages(distribution):
    distribution("demo-dist", {"advantage": {"scaled": "demo_good:Scaled"}}, demo_good=GOOD)
    with pytest.raises(UnknownPluginError, match="Did you mean 'scaled'"):
        resolve("advantage", "scalled")
    assert "demo_good" not in sys.modules
