"""The registry: names, kinds, duplicates, and who is asked for what."""

from __future__ import annotations

import pytest

from rlhf_lightning import registry
from rlhf_lightning.errors import DuplicatePluginError, UnknownPluginError
from rlhf_lightning.protocols import AdvantageEstimator
from rlhf_lightning.registry import KINDS, nearest, plugins, register, resolve
from rlhf_lightning.types import Advantages, TokenRewards


class Halved(AdvantageEstimator):
    """Half of it.

    And a second paragraph.
    """

    def __call__(self, rewards: TokenRewards) -> Advantages:
        return Advantages(rewards.values / 2)


class Other(Halved):
    """Another one."""


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {})


def test_a_registered_class_is_found_by_name():
    assert register("advantage", "halved")(Halved) is Halved
    assert resolve("advantage", "halved") is Halved


def test_the_listing_tells_where_it_comes_from():
    register("advantage", "halved")(Halved)
    info = plugins("advantage")["halved"]
    assert (info.kind, info.name) == ("advantage", "halved")
    assert info.target == f"{__name__}.Halved"
    assert info.origin == f"registered by {__name__}"
    assert info.doc == "Half of it."


def test_names_are_sorted_and_kinds_apart():
    for name in ("zeta", "alpha"):
        register("advantage", name)(Halved)
    register("metric", "alpha")(Other)
    assert list(plugins("advantage")) == ["alpha", "zeta"]
    assert resolve("metric", "alpha") is Other
    assert plugins("scorer") == {}


def test_a_duplicate_names_both():
    register("advantage", "halved")(Halved)
    with pytest.raises(DuplicatePluginError, match=r"two advantage plug-ins are called 'halved': .*Halved and .*Other"):
        register("advantage", "halved")(Other)
    assert resolve("advantage", "halved") is Halved


def test_the_same_class_may_register_again():
    register("advantage", "halved")(Halved)
    register("advantage", "halved")(Halved)
    assert list(plugins("advantage")) == ["halved"]


def test_an_unknown_name_is_answered_with_the_nearest():
    register("advantage", "halved")(Halved)
    register("advantage", "doubled")(Other)
    with pytest.raises(UnknownPluginError) as caught:
        resolve("advantage", "halve")
    assert str(caught.value) == "no advantage is called 'halve'. Did you mean 'halved'? Known: doubled, halved"


def test_an_unknown_name_with_nothing_near():
    with pytest.raises(UnknownPluginError) as caught:
        resolve("advantage", "xyz")
    assert str(caught.value) == "no advantage is called 'xyz'. Known: none"


@pytest.mark.parametrize("ask", [lambda k: register(k, "x"), lambda k: resolve(k, "x")])
def test_an_unknown_kind_is_answered_with_the_nearest(ask):
    with pytest.raises(UnknownPluginError, match=r"is called 'advantages'. Did you mean 'advantage'"):
        ask("advantages")


@pytest.mark.parametrize(
    ("word", "choices", "expected"),
    [("gea", ["gae", "group"], "gae"), ("xyz", ["gae"], None), ("gae", [], None), ("clip", {"clipp": 1}, "clipp")],
)
def test_nearest(word, choices, expected):
    assert nearest(word, choices) == expected


def test_every_kind_has_a_contract_class():
    assert {"sampler", "scorer", "reward_transform", "advantage", "policy_loss", "kl_controller", "task"} <= set(KINDS)
    assert all(isinstance(contract, type) for contract in KINDS.values())
