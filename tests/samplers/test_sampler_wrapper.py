"""A wrapper hands on everything of the contract that it does not define, also what the contract gets later."""

import copy
import inspect
import pickle
from dataclasses import replace
from unittest.mock import create_autospec, sentinel

import pytest
import torch
from sampler_models import prompts, random_model

from rlhf_lightning import ranks
from rlhf_lightning.delegation import delegates, members
from rlhf_lightning.models.tiny import character_tokenizer
from rlhf_lightning.protocols import Sampler
from rlhf_lightning.samplers import DynamicSampler, InProcessSampler, SamplerWrapper
from rlhf_lightning.samplers.overlap import OverlapSampler
from rlhf_lightning.samplers.wrappers import DataParallelSampler, data_parallel
from rlhf_lightning.testing import check_plugin

SEEDS = torch.arange(4, dtype=torch.int64)


def asked():
    return {"prompts": prompts("1+2=", "13+4="), "samples_per_prompt": 2, "seeds": SEEDS}


def bound(sampler):
    sampler.bind(random_model("llama"), character_tokenizer())
    sampler.sync(3)
    return sampler


def of_contract(contract):
    """Members that the contract's source states, told without the code under test."""
    stated = {*vars(contract), *contract.__annotations__}
    return [*sorted(name for name in stated if not name.startswith("_")), "__call__"]


def called(method):
    """Arguments by name for all parameters of a method but self."""
    return {name: getattr(sentinel, name) for name in list(inspect.signature(method).parameters)[1:]}


OWN = {  # what a wrapper defines itself, and why a test of its own looks at it
    SamplerWrapper: {"wrap_drawing"},
    DataParallelSampler: {"wrap_drawing", "__call__"},
    OverlapSampler: {"wrap_drawing", "__call__", "on_tokens", "hold_weights", "decoding", "bind", "refill", "release"},
    DynamicSampler: {"wrap_drawing", "refills", "min_group_size", "looks_for_equal_scores", "refill"},
}


@pytest.mark.parametrize("name", of_contract(Sampler))
@pytest.mark.parametrize("wrapper", OWN, ids=lambda cls: cls.__name__)
def test_every_member_of_the_contract_is_the_inner_samplers(wrapper, name):
    inner = create_autospec(Sampler, instance=True, refills=False)
    outer = wrapper(inner)
    if name in OWN[wrapper]:
        assert name in {n for cls in wrapper.__mro__[: wrapper.__mro__.index(Sampler)] for n in vars(cls)}
    elif inspect.isfunction(getattr(Sampler, name, None)):
        arguments = called(getattr(Sampler, name))
        found = outer(**arguments) if name == "__call__" else getattr(outer, name)(**arguments)
        asked_of = inner if name == "__call__" else getattr(inner, name)
        asked_of.assert_called_once()
        assert [*asked_of.call_args.args, *asked_of.call_args.kwargs.values()] == list(arguments.values())
        assert found is (asked_of.return_value if name not in ("bind", "sync") else None)
    else:
        setattr(inner, name, sentinel.inner)
        assert getattr(outer, name) is sentinel.inner
        setattr(outer, name, sentinel.told)
        assert getattr(inner, name) is sentinel.told


class Later(Sampler):
    """The contract, some day."""

    budget: int
    quick = True

    def drain(self, how):
        return "by default", how


def test_members_that_come_later_go_on_too():
    """And a sampler of another making, which does not know them, does as the contract says."""

    @delegates(Later, to="sampler")
    class Wrapper(SamplerWrapper, Later):
        pass

    inner = create_autospec(Later, instance=True, budget=7, quick=sentinel.quick)
    inner.drain.return_value = "inner"
    outer = Wrapper(inner)
    assert (outer.budget, outer.quick, outer.drain(1)) == (7, sentinel.quick, "inner")
    old = Wrapper(InProcessSampler(max_new_tokens=6))
    assert (old.quick, old.drain(1)) == (True, ("by default", 1))
    assert {"budget", "quick", "drain", "check", "__call__"} <= set(members(Later))


class Counting(SamplerWrapper):
    """An outside wrapper of three methods."""

    def __init__(self, sampler):
        super().__init__(sampler)
        self.drawn = self.syncs = 0

    def sync(self, weights_version):
        self.syncs += 1
        super().sync(weights_version)

    def __call__(self, prompts, **how):
        rollout = super().__call__(prompts, **how)
        self.drawn += int(rollout.mask.sum())
        return rollout


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))], ids=["copy", "pickle"])
def test_nested_wrappers_are_copied_and_draw_as_the_one_inside(copied):
    plain = bound(InProcessSampler(max_new_tokens=6))(**asked())
    nested = Counting(OverlapSampler(DynamicSampler(Counting(InProcessSampler(max_new_tokens=6)), tolerance=0.25)))
    twin = copied(nested)
    for sampler in (nested, twin):
        bound(sampler)
        sampler.sampler.begin(**asked())
        rollout = sampler(**asked())
        assert torch.equal(rollout.tokens, plain.tokens) and torch.equal(rollout.logprobs, plain.logprobs)
        assert rollout.weights_version == 3
        assert sampler.drawn == sampler.sampler.sampler.sampler.drawn == int(plain.mask.sum())
        assert sampler.refills and sampler.min_group_size == 2 and not sampler.looks_for_equal_scores and sampler.exact
    assert twin.params == nested.params and twin.params is not nested.params
    assert nested.decoding().ahead and nested.decoding().max_new_tokens == 6


def test_a_draw_in_the_background_is_copied_once_it_is_there():
    sampler = bound(OverlapSampler(InProcessSampler(max_new_tokens=6)))
    sampler.begin(**asked())
    twin = copy.deepcopy(sampler)
    assert torch.equal(twin.waiting().tokens, sampler(**asked()).tokens)


def test_drawing_is_wrapped_where_whole_rollouts_are_still_seen(monkeypatch):
    """Refills look at whole rollouts, so what divides the drawing goes below them, below the wrappers around too."""
    inner = InProcessSampler()
    assert data_parallel(Counting(inner)).sampler is inner  # one rank: as it is
    monkeypatch.setattr(ranks, "world_size", lambda: 2)
    plain = data_parallel(Counting(inner))
    assert isinstance(plain, DataParallelSampler) and isinstance(plain.sampler, Counting)
    refilled = data_parallel(Counting(DynamicSampler(inner).wrap_drawing(OverlapSampler)))
    kinds = [Counting, DynamicSampler, DataParallelSampler, OverlapSampler, InProcessSampler]
    while kinds:
        assert type(refilled) is kinds.pop(0)
        refilled = getattr(refilled, "sampler", None)


class Loses(Sampler):
    """As `Counting`, by hand."""

    def __init__(self, inner=None):
        self.inner = inner or InProcessSampler(max_new_tokens=6)
        self.params = self.inner.params

    def bind(self, model, tokenizer):
        self.inner.bind(model, tokenizer)

    def sync(self, weights_version):
        self.inner.sync(weights_version)

    def __call__(self, prompts, **how):
        return replace(self.inner(prompts, **how))


def test_the_plugin_check_refuses_a_wrapper_that_loses_what_is_inside():
    failed = {r.name: r.why for r in check_plugin(Loses).results if not r.passed}
    assert set(failed) == {"wraps all"}
    for lost in ("check", "on_tokens", "decoding", "hold_weights"):
        assert f" {lost}," in failed["wraps all"]
    assert " params" not in failed["wraps all"] and " sync" not in failed["wraps all"]
    assert failed["wraps all"].endswith("(inner): derive from rlhf_lightning.samplers.SamplerWrapper")
    check_plugin(Counting, make=lambda: Counting(InProcessSampler(max_new_tokens=6))).raise_on_failure()
    check_plugin(DynamicSampler).raise_on_failure()
