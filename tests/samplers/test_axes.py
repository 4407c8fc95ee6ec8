"""Every field that says its axes, and a made-up column, goes where its rows go; a field added later is covered too."""

import dataclasses
import os
import socket
import subprocess
import sys
import typing
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sampler_models import prompts as real_prompts
from tests.served import served

from rlhf_lightning import axes, reward_types, types
from rlhf_lightning.data.update_batches import updates_of
from rlhf_lightning.errors import DataError, PartError
from rlhf_lightning.models import TinyLlama
from rlhf_lightning.modules.collector import restored, state_of
from rlhf_lightning.modules.sft import SFTBatch
from rlhf_lightning.protocols import Sampler
from rlhf_lightning.samplers import DynamicSampler, InProcessSampler, RemoteSampler
from rlhf_lightning.samplers.overlap import OverlapSampler
from rlhf_lightning.serving.served_policy import ServedPolicy
from rlhf_lightning.types import Advantages, Experience, Problem, Prompt, Rollout, SamplingParams, Scores, StepScores

KINDS = [
    kind
    for module in (types, reward_types)
    for kind in vars(module).values()
    if isinstance(kind, type) and dataclasses.is_dataclass(kind)
]
GROUP, WIDTH = 2, 5


def whole(groups, width=WIDTH, seed=0):
    """Rollout, scores and the rest of an experience in which every field with axes has numbers of its own."""
    counter = iter(range(1000 + 10_000 * seed, 10**9))
    sizes = {"P": groups, "B": groups * GROUP, "T": width}
    lengths = torch.arange(sizes["B"]) % width + 1
    lengths[-1] = width
    exists = torch.arange(width) < lengths[:, None]
    holes = {"mask": exists & (torch.arange(width) != 1), "inserted": exists & (torch.arange(width) == 1)}

    def made(kind):
        hints, found = typing.get_type_hints(kind), {}
        for field in dataclasses.fields(kind):
            named, hint = field.metadata.get("axes", ()), str(hints[field.name])
            inner = next((k for k in KINDS if k.__name__ in hint.replace("|", " ").split(".")[-1].split()), None)
            if named and "tuple" in hint:
                make = asked if "Prompt" in hint else (lambda i: f"text {i}")
                found[field.name] = tuple(make(next(counter)) for _ in range(sizes[named[0]]))
            elif named:
                shape = tuple(sizes[axis] for axis in named)
                size = int(torch.tensor(shape).prod())
                value = torch.tensor([next(counter) for _ in range(size)]).view(shape)
                value = value if field.name == "tokens" else value.float()
                value = holes.get(field.name, value)
                found[field.name] = {"made up": value} if "Mapping" in hint else value
            elif field.name == "steps" or dataclasses.is_dataclass(hints[field.name]):
                found[field.name] = made(StepScores if field.name == "steps" else inner or hints[field.name])
        return kind(**found, **{"metrics": {}} if kind is Experience else {}) if kind is not Rollout else rollout(found)

    def asked(number):
        return Prompt(Problem(str(number), ""), "t", "", (1, 2), number)

    def rollout(found):
        return Rollout(**{**found, "params": SamplingParams(stop=("x",)), "finished": exists[:, 0]})

    return made(Experience)


def leaves(value, along=(), path=""):
    """Each tensor or tuple with axes by its path, found by walking the fields and not by the module under test."""
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            own = field.metadata.get("axes", ())
            yield from leaves(getattr(value, field.name), own, f"{path}.{field.name}")
    elif isinstance(value, Mapping) and along:
        for name, inner in sorted(value.items()):
            yield from leaves(inner, along, f"{path}[{name}]")
    elif along and value is not None:
        yield path, along, value


def rows(values, axis, numbers):
    groups = [n // GROUP for n in numbers[::GROUP]] if axis == "P" else numbers
    return tuple(values[i] for i in groups) if isinstance(values, tuple) else torch.stack([values[i] for i in groups])


def same(one, other):
    mine, theirs = (list(leaves(value)) for value in (one, other))
    assert [leaf[0] for leaf in mine] == [leaf[0] for leaf in theirs]
    for (path, _, a), (_, _, b) in zip(mine, theirs, strict=True):
        assert a == b if isinstance(a, tuple) else torch.equal(a, b) and a.dtype == b.dtype, path


@pytest.mark.parametrize("kind", [*KINDS, SFTBatch], ids=lambda kind: kind.__name__)
def test_every_tensor_says_its_axes(kind):
    bare = [f.name for f in dataclasses.fields(kind) if "Tensor" in str(f.type) and not f.metadata.get("axes")]
    assert not bare


def test_every_field_and_column_is_there_to_be_tested():
    paths = {path for path, _, _ in leaves(whole(2))}
    assert {".rollout.columns[made up]", ".scores.columns[made up]", ".rollout.inserted", ".scores.steps.ends"} <= paths
    assert len(paths) >= 20


def test_rows_are_taken_in_any_order():
    experience = whole(3)
    for numbers in ([4, 5, 0, 1], [2, 3]):
        taken = axes.take(experience, P=[n // GROUP for n in numbers[::GROUP]], B=numbers)
        for (path, along, before), (_, _, after) in zip(leaves(experience), leaves(taken), strict=True):
            expected = rows(before, along[0], numbers)
            assert after == expected if isinstance(after, tuple) else torch.equal(after, expected), path


def test_parts_of_different_widths_are_joined_and_part_again():
    first, second = whole(2, width=3), whole(1, width=6, seed=1)
    joined = axes.join([first, second])
    parts = zip(leaves(first), leaves(second), leaves(joined), strict=True)
    for (path, along, a), (_, _, b), (_, _, both) in parts:
        if isinstance(a, tuple):
            assert both == (*a, *b), path
            continue
        expected = torch.cat([torch.nn.functional.pad(a, (0, 3)), b]) if "T" in along else torch.cat([a, b])
        assert torch.equal(both, expected), path
    same(axes.fitted(axes.take(joined, P=[0, 1], B=range(4)), T=3), first)
    same(axes.take(joined, P=[2], B=[4, 5]), second)


def test_a_column_of_some_parts_alone_is_refused_and_what_may_be_missing_is_filled():
    rollout, other = whole(1).rollout, whole(1, seed=1).rollout
    with pytest.raises(PartError, match=r"columns: 'made up' is there in some"):
        axes.join([rollout, replace(other, columns={})])
    plain = replace(other, inserted=None, counted=None, mask=other.exists)
    joined = axes.join([rollout, plain])
    assert not joined.inserted[2:].any() and torch.equal(joined.counted[2:], other.exists.to(joined.counted.dtype))
    with pytest.raises(PartError, match=r"ref_logprobs is there in some"):
        axes.join([whole(1), replace(whole(1), ref_logprobs=None)])


def test_all_of_it_goes_to_bytes_and_back(tmp_path):
    bare = replace(whole(2), rollout=replace(whole(2).rollout, prompts=()))
    axes.save(tmp_path / "a" / "file", [bare, bare], "experience", {"n": 1})
    (back, again), note = axes.load(tmp_path / "a" / "file", Experience, "experience")
    same(back, bare)
    same(again, bare)
    assert back.rollout.params == bare.rollout.params and note == {"n": 1}
    with pytest.raises(DataError, match="holds no update"):
        axes.load(tmp_path / "a" / "file", Experience, "update")


def test_a_checkpoint_keeps_the_rollout_that_was_drawn_ahead(tmp_path):
    rollout = whole(3).rollout
    torch.save(state_of(rollout), tmp_path / "state")
    state = torch.load(tmp_path / "state", weights_only=True)
    same(restored(state, rollout.prompts, torch.zeros(6)), rollout)


def test_a_checkpoint_of_before_is_read():
    plain = replace(whole(1).rollout, inserted=None, counted=None, columns={}, mask=whole(1).rollout.exists)
    old = {name: getattr(plain, name) for name in ("tokens", "logprobs", "finished", "lengths", "weights_version")}
    old |= {"texts": list(plain.texts), "prompts": [p.index for p in plain.prompts]}
    old |= {"params": {**dataclasses.asdict(plain.params), "stop": ["x"]}}
    back = restored(old, plain.prompts, torch.zeros(2))
    same(back, plain)
    assert back.params == plain.params


def test_an_update_has_the_columns_of_all_and_its_file_keeps_them(tmp_path):
    """Sampler, scorer, estimator and loss each add one; every micro-batch has its own rows of them."""
    experience = whole(3)
    names = ("sampler", "scorer", "estimator")
    tables = dict(zip(names, torch.randn(3, 6, WIDTH), strict=True))
    parts = (experience.rollout, experience.scores, experience.advantages)
    given = [replace(part, columns={name: tables[name]}) for name, part in zip(names, parts, strict=True)]
    experience = replace(experience, rollout=given[0], scores=given[1], advantages=given[2])
    cut = {"updates": 1, "token_budget": 14, "aggregation": "token-mean", "order": [2, 0, 1]}
    marked = lambda old, advantages, mask, number: {"loss": old * 2}  # noqa: E731
    batches = updates_of(experience, **cut, mark=marked)[0]
    assert len(batches) > 1
    tables["loss"] = experience.old_logprobs * 2
    seen = []
    for batch in batches:
        if not batch.weights.any():
            continue
        own = [experience.old_logprobs.tolist().index(row) for row in batch.old_logprobs.tolist()]
        seen += own
        assert batch.columns.keys() == tables.keys()
        assert all(torch.equal(batch.columns[name], tables[name][own]) for name in tables)
        assert torch.equal(batch.packed.mask, experience.rollout.mask[own])
    assert sorted(seen) == list(range(6))
    axes.save(tmp_path / "u", batches, "update")
    for back, batch in zip(axes.load(tmp_path / "u", types.UpdateBatch, "update")[0], batches, strict=True):
        same(back, batch)
    with pytest.raises(PartError, match="'sampler' already"):
        updates_of(experience, **cut, mark=lambda old, *_: {"sampler": old})


class Telling(Sampler):
    """A sampler around another that fills in every optional field and a column, as functions of tokens alone."""

    def __init__(self, sampler):
        self.sampler, self.params = sampler, sampler.params

    exact = False

    def bind(self, model, tokenizer):
        self.sampler.bind(model, tokenizer)

    def check(self, tokenizer, config):
        self.sampler.check(tokenizer, config)

    def sync(self, weights_version):
        self.sampler.sync(weights_version)

    def hold_weights(self):
        self.sampler.hold_weights()

    def __call__(self, prompts, **asked):
        return told(self.sampler(prompts, **asked))


def told(rollout):
    hole = rollout.mask & (torch.arange(rollout.mask.shape[1]) == 1) & (rollout.lengths > 2)[:, None]
    mask = rollout.mask & ~hole
    columns = {"made up": rollout.tokens * 0.5 + 1, "flag": rollout.tokens % 2 == 0}
    counted = mask & (rollout.tokens % 3 > 0)
    return replace(
        rollout, mask=mask, logprobs=rollout.logprobs * mask, inserted=hole, counted=counted, columns=columns
    )


SOURCE = TinyLlama(hidden=32, layers=2, heads=2)
ASKED = {"samples_per_prompt": 2, "seeds": torch.arange(6)}


def bound(sampler):
    sampler.bind(SOURCE.load(), SOURCE.tokenizer())
    sampler.sync(3)
    return sampler


def unpadded(rollout):
    """What stands within each response; what a table is padded with off it may differ."""
    keep = rollout.exists

    def clean(value, along):
        return value.masked_fill(~keep, 0) if along == ("B", "T") else value

    return axes.mapped(rollout, clean)


def drawn_at_once():
    return bound(Telling(InProcessSampler(max_new_tokens=6)))(real_prompts("1+2=", "13+4=", "a"), **ASKED)


def close(one, other):
    """Log-probs up to the rounding of matrix products of another shape, all else to the bit."""
    torch.testing.assert_close(one.logprobs, other.logprobs, atol=1e-4, rtol=0)
    same(unpadded(replace(one, logprobs=other.logprobs)), unpadded(other))


def test_drawn_ahead_it_is_the_same():
    sampler = bound(OverlapSampler(Telling(InProcessSampler(max_new_tokens=6))))
    asked = real_prompts("1+2=", "13+4=", "a")
    sampler.begin(asked, **ASKED)
    close(sampler(asked, **ASKED), drawn_at_once())


def test_from_servers_it_is_the_same():
    """Each field and column travels over the wire, whoever draws which group."""
    policies = [ServedPolicy(SOURCE, Telling(InProcessSampler(max_new_tokens=6))) for _ in range(2)]
    with served(policies[0]) as one, served(policies[1]) as two:
        sampler = RemoteSampler([one.url, two.url], max_new_tokens=6, canary_tolerance=float("inf"))
        rollout = bound(sampler)(real_prompts("1+2=", "13+4=", "a"), **ASKED)
    close(rollout, drawn_at_once())


def test_groups_that_take_the_place_of_others_bring_all_of_theirs():
    experience, fresh = whole(3), whole(2, width=7, seed=1)
    fresh = replace(fresh, scores=replace(fresh.scores, values=torch.tensor([1.0, 1.0, 0.0, 1.0])))
    before = replace(experience.scores, values=torch.tensor([0.0, 1.0, 1.0, 1.0, 0.0, 1.0]))

    class Fresh(InProcessSampler):
        def __call__(self, *args, **settings):
            return fresh.rollout

    sampler = DynamicSampler(Fresh(), max_rounds=1)
    further = lambda count: (fresh.rollout.prompts, torch.arange(4))  # noqa: E731
    rollout, scores, _ = sampler.refill(experience.rollout, before, further=further, score=lambda _: fresh.scores)
    for found, old, new in ((rollout, experience.rollout, fresh.rollout), (scores, before, fresh.scores)):
        for (path, along, mine), (_, _, a), (_, _, b) in zip(leaves(found), leaves(old), leaves(new), strict=True):
            parts = (rows(a, along[0], [0, 1]), rows(b, along[0], [2, 3]), rows(a, along[0], [4, 5]))
            if isinstance(mine, tuple):
                assert mine == sum(parts, ()), path
            else:
                width = mine.shape[1] if "T" in along else 0
                wide = [torch.nn.functional.pad(x, (0, width - x.shape[1])) if width else x for x in parts]
                assert torch.equal(mine, torch.cat(wide)), path


RANKS = """
import sys
sys.path[:0] = sys.argv[1:3]
import torch
import torch.distributed as dist
from test_axes import InProcessSampler, Telling, bound, close, drawn_at_once, real_prompts, same, whole, ASKED
from rlhf_lightning import ranks
from rlhf_lightning.samplers.wrappers import DataParallelSampler
from rlhf_lightning.scorers.wrappers import DataParallelScorer
from rlhf_lightning.protocols import Scorer
from rlhf_lightning import axes
dist.init_process_group("gloo")
sampler = bound(DataParallelSampler(Telling(InProcessSampler(max_new_tokens=6))))
found = sampler(real_prompts("1+2=", "13+4=", "a"), **ASKED)
close(found, drawn_at_once())
from dataclasses import replace
from rlhf_lightning.types import Scores, StepScores
experience = whole(3)
rollout = experience.rollout
rollout = replace(rollout, columns={})
class Given(Scorer):
    name = "given"
    def __call__(self, asked):
        numbers = [rollout.texts.index(text) for text in asked.texts]
        return axes.fitted(axes.take(scores, B=numbers), T=asked.tokens.shape[1])
scores = experience.scores
scores = replace(scores, steps=StepScores(scores.steps.values * rollout.mask, rollout.mask), failed=scores.values > 1e9,
    nonfinite=scores.values > 1e9, columns={"made up": scores.columns["made up"] * rollout.exists})
same(DataParallelScorer(Given())(rollout), scores)
print("same")
ranks.end(0)
"""


def test_two_ranks_share_it_and_both_have_all():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    here = Path(__file__).parent
    folders = [str(here), str(here.parent)]
    env = os.environ | meeting | {"PYTHONPATH": os.pathsep.join([str(here.parent.parent), *sys.path])}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", RANKS, *folders], env=env | {"RANK": str(rank)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]  # fmt: skip
    ended = [process.communicate(timeout=240) for process in started]
    assert [out.strip() for out, _ in ended] == ["same", "same"], ended[0][1][-2000:]


def test_advantages_and_scores_are_made_with_a_column():
    """Their constructors take it by name, so that one line makes it."""
    table = torch.ones(2, 3)
    assert Advantages(table, columns={"x": table}).columns["x"] is table
    made = Scores(table[:, 0], {}, table[:, 0] > 1, columns={"x": table})
    assert made.columns["x"] is table
