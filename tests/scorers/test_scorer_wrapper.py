"""A wrapper around a scorer hands on everything of the contract that it does not define."""

import copy
import inspect
import pickle
from dataclasses import replace
from unittest.mock import create_autospec, sentinel

import pytest
import torch

from rlhf_lightning import ranks
from rlhf_lightning.protocols import Scorer
from rlhf_lightning.scorers import FormatScorer, MixtureScorer, ScorerWrapper
from rlhf_lightning.scorers.wrappers import DataParallelScorer, data_parallel
from rlhf_lightning.testing import check_plugin
from rlhf_lightning.testing.values import rollout
from rlhf_lightning.types import Scores

STATED = [*sorted(n for n in {*vars(Scorer), *Scorer.__annotations__} if n[0] != "_"), "__call__"]
OWN = {ScorerWrapper: {"wrap_scoring"}, DataParallelScorer: {"wrap_scoring", "__call__"}}


@pytest.mark.parametrize("name", STATED)
@pytest.mark.parametrize("wrapper", OWN, ids=lambda cls: cls.__name__)
def test_every_member_of_the_contract_is_the_inner_scorers(wrapper, name):
    inner = create_autospec(Scorer, instance=True)
    outer = wrapper(inner)
    if name in OWN[wrapper]:
        return
    if inspect.isfunction(getattr(Scorer, name, None)):
        arguments = [getattr(sentinel, p) for p in list(inspect.signature(getattr(Scorer, name)).parameters)[1:]]
        found = outer(*arguments) if name == "__call__" else getattr(outer, name)(*arguments)
        asked_of = inner if name == "__call__" else getattr(inner, name)
        asked_of.assert_called_once()
        assert list(asked_of.call_args.args) == arguments
        assert found is asked_of.return_value
    else:
        setattr(inner, name, sentinel.inner)
        assert getattr(outer, name) is sentinel.inner
        setattr(outer, name, sentinel.told)
        assert getattr(inner, name) is sentinel.told


class Halved(ScorerWrapper):
    """An outside wrapper of one method."""

    def __call__(self, rollout):
        scores = super().__call__(rollout)
        return replace(scores, values=scores.values / 2)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))], ids=["copy", "pickle"])
def test_nested_wrappers_are_copied_and_score_as_the_one_inside(copied):
    form = FormatScorer(".*", label="form")
    nested = MixtureScorer([Halved(Halved(form)), FormatScorer("x")], [4.0, 1.0])
    expected = form(rollout()).values + FormatScorer("x")(rollout()).values
    for scorer in (nested, copied(nested)):
        assert torch.equal(scorer(rollout()).values, expected)
        assert set(scorer(rollout()).parts) == {"form", "format"}


class Shape:
    """A scorer of another making: no base class, and only what scoring needs."""

    name = "shape"

    def __call__(self, rollout):
        values = torch.ones(len(rollout.texts))
        return Scores(values, {}, torch.zeros(len(values), dtype=torch.bool))


def test_a_scorer_of_another_making_does_otherwise_as_the_contract_says(monkeypatch):
    mixture = MixtureScorer([Shape()])
    mixture.bind({})
    mixture.check()
    assert (mixture.failure_score, mixture.never_equal, mixture.gives_steps) == (0.0, False, None)
    assert (mixture.held_models(), mixture.identity()) == ((), "")
    monkeypatch.setattr(ranks, "world_size", lambda: 2)
    assert isinstance(data_parallel(mixture).scorers[0].scorer, DataParallelScorer)


class OwnWork(FormatScorer):
    """Its work is shared by all ranks already."""

    def wrap_scoring(self, wrapper):
        return self


def test_scoring_is_divided_below_the_wrappers_and_once(monkeypatch):
    monkeypatch.setattr(ranks, "world_size", lambda: 2)
    scorer, own = Halved(FormatScorer("x")), OwnWork("x", label="own")
    for _ in range(2):  # each rollout asks for it again
        divided = data_parallel(MixtureScorer([scorer, Halved(own)]))
        first, second = divided.scorers
        assert first is scorer and type(first.scorer) is DataParallelScorer
        assert type(first.scorer.scorer) is FormatScorer and second.scorer is own


class Loses(Scorer):
    """As `Halved`, by hand."""

    name = "loses"

    def __init__(self):
        self.inside = FormatScorer("x")

    def __call__(self, rollout):
        return self.inside(rollout)


def test_the_plugin_check_refuses_a_wrapper_that_loses_what_is_inside():
    failed = {r.name: r.why for r in check_plugin(Loses).results if not r.passed}
    assert set(failed) == {"wraps all"}
    assert all(f" {lost}" in failed["wraps all"] for lost in ("bind", "check", "identity", "held_models"))
    assert failed["wraps all"].endswith("(inside): derive from rlhf_lightning.scorers.ScorerWrapper")
    check_plugin(Halved, make=lambda: Halved(FormatScorer("x"))).raise_on_failure()
