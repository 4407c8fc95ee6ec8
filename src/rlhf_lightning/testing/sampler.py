"""Contract of samplers, on a tiny random Llama: shapes, log-probs, and draws that are a function of the seed alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache

import torch
from torch import Tensor

from rlhf_lightning.protocols import Sampler
from rlhf_lightning.samplers import SamplerWrapper
from rlhf_lightning.testing.report import Check, require_same, require_shape, violated, wraps_all_of
from rlhf_lightning.types import Problem, Prompt, Rollout, SamplingParams, Scores

Make = Callable[[], Sampler]
PARAMS = SamplingParams(max_new_tokens=6)
SEEDS = torch.tensor([11, 12, 13, 14])


def shape(make: Make) -> None:
    """(B, T) tensors, right-padded with 0, one text a response."""
    rollout = _draw(make())
    count, width = len(SEEDS), rollout.tokens.shape[1]
    violated(width > PARAMS.max_new_tokens, f"{width} tokens a response, max_new_tokens is {PARAMS.max_new_tokens}")
    for name in ("tokens", "mask", "logprobs"):
        require_shape(name, getattr(rollout, name), (count, width))
    require_shape("finished", rollout.finished, (count,))
    violated(len(rollout.texts) != count, f"{len(rollout.texts)} texts for {count} responses")
    lengths = rollout.lengths
    require_same("mask is not right-padded", rollout.exists, torch.arange(width) < lengths[:, None])
    violated((rollout.drawn == 0).any(), "a response has no token")
    violated(rollout.tokens[~rollout.exists].any(), "tokens off the mask are not 0")


def logprobs(make: Make) -> None:
    """Log-probs are at most 0, and 0 off the mask."""
    rollout = _draw(make())
    violated((rollout.logprobs > 1e-6).any(), "a log-prob is above 0")
    violated(rollout.logprobs[~rollout.mask].any(), "log-probs off the mask are not 0")


def deterministic(make: Make) -> None:
    """The same seeds give the same tokens."""
    require_same("two calls with the same seeds differ", _draw(make()).tokens, _draw(make()).tokens)


def batch_mates(make: Make) -> None:
    """A sequence does not depend on those drawn beside it."""
    together, alone = _draw(make()), _draw(make(), prompts=1)
    count, width = alone.tokens.shape
    mine = alone.mask
    require_same("the draws change with the batch", alone.tokens[mine], together.tokens[:count, :width][mine])


def version(make: Make) -> None:
    """The rollout carries the version last synced."""
    sampler = _bound(make())
    sampler.sync(7)
    found = sampler(_prompts(1), samples_per_prompt=1, seeds=SEEDS[:1], params=PARAMS).weights_version
    violated(found != 7, f"weights_version is {found} after sync(7)")


def refill(make: Make) -> None:
    """As many groups of the same size after ``refill``, each response with its own score, and finite numbers to log."""
    sampler = _bound(make())
    sampler.sync(0)
    before = sampler(_prompts(2), samples_per_prompt=2, seeds=SEEDS, params=PARAMS)
    spare = iter([(_prompts(1), SEEDS[:2] + 100)])

    def further(count: int) -> tuple[Sequence[Prompt], Tensor]:
        return next(spare, ((), SEEDS[:0]))

    rollout, scores, logged = sampler.refill(before, _lengths(before), further=further, score=_lengths)
    sizes = (len(rollout.prompts), rollout.group_size)
    violated(sizes != (2, 2), f"{sizes[0]} groups of {sizes[1]} after refill, there were 2 of 2")
    require_same("scores are not those of the responses", scores.values, _lengths(rollout).values)
    odd = [name for name, value in logged.items() if not math.isfinite(value)]
    violated(odd, f"not finite: {', '.join(odd)}")


CHECKS: Mapping[str, Check] = {
    "shape": shape,
    "log-probs": logprobs,
    "deterministic": deterministic,
    "independent of batch mates": batch_mates,
    "weights version": version,
    "refill": refill,
    "wraps all": wraps_all_of(Sampler, SamplerWrapper),
}
"""The contract."""


def _draw(sampler: Sampler, prompts: int = 2) -> Rollout:
    sampler = _bound(sampler)
    sampler.sync(0)
    return sampler(_prompts(prompts), samples_per_prompt=2, seeds=SEEDS[: 2 * prompts], params=PARAMS)


def _lengths(rollout: Rollout) -> Scores:
    values = rollout.lengths.float()
    return Scores(values, {"length": values}, torch.zeros(len(values), dtype=torch.bool))


def _bound(sampler: Sampler) -> Sampler:
    source, model = _tiny()
    sampler.bind(model, source.tokenizer())
    return sampler


def _prompts(count: int) -> tuple[Prompt, ...]:
    texts = ("1+2=", "17+4=")[:count]
    tokenizer = _tiny()[0].tokenizer()
    return tuple(
        Prompt(Problem(f"check-{i}", text), "check", text, tuple(tokenizer(text)["input_ids"]), i)
        for i, text in enumerate(texts)
    )


@cache
def _tiny():  # type: ignore[no-untyped-def]
    from rlhf_lightning.models.tiny import TinyLlama

    source = TinyLlama(hidden=16, layers=1, heads=2)
    return source, source.load()
