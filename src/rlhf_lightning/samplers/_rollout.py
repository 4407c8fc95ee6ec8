"""Between prompts and rows of tokens: what is sampled together, and the rollout that comes out."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlhf_lightning.samplers._loop import Drawn
from rlhf_lightning.samplers.texts import response_texts
from rlhf_lightning.types import Prompt, Rollout, SamplingParams

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def distinct(prompts: Sequence[Prompt], samples_per_prompt: int) -> tuple[list[tuple[int, ...]], Tensor]:
    """The distinct token sequences among the prompts, and for each of the P·G rows which one it continues.

    Raises:
        ValueError: If a prompt has no tokens.
    """
    number: dict[tuple[int, ...], int] = {}
    owners = [number.setdefault(prompt.tokens, len(number)) for prompt in prompts]
    if () in number:
        raise ValueError(f"prompt {owners.index(number[()])} has no tokens")
    return list(number), torch.tensor(owners, dtype=torch.int64).repeat_interleave(samples_per_prompt)


def chunks(rows: int, samples_per_prompt: int, batch_size: int) -> Iterator[slice]:
    """Runs of at most ``batch_size`` rows; whole groups where a group fits."""
    size = batch_size // samples_per_prompt * samples_per_prompt if 0 < samples_per_prompt <= batch_size else batch_size
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))


def to_rollout(
    prompts: Sequence[Prompt],
    drawn: Sequence[Drawn],
    params: SamplingParams,
    tokenizer: PreTrainedTokenizerBase,
    ends: Collection[int],
    weights_version: int,
) -> Rollout:
    """Joins what was drawn, cut to the longest response, with texts (without the tokens ``ends``) and log-probs."""
    if not drawn:
        return _empty(prompts, params, weights_version)
    lengths = torch.cat([part.lengths for part in drawn])
    width = int(lengths.max())
    tokens = torch.cat([part.tokens for part in drawn])[:, :width].contiguous()
    mask = torch.arange(width, device=lengths.device) < lengths.unsqueeze(1)
    ids = [row[:length] for row, length in zip(tokens.tolist(), lengths.tolist(), strict=True)]
    return Rollout(
        prompts=tuple(prompts),
        tokens=tokens,
        mask=mask,
        logprobs=torch.cat([part.probs for part in drawn])[:, :width].log(),
        finished=torch.cat([part.finished for part in drawn]),
        texts=response_texts(tokenizer, ids, ends, special=params.keep_special_tokens),
        params=params,
        weights_version=weights_version,
    )


def _empty(prompts: Sequence[Prompt], params: SamplingParams, weights_version: int) -> Rollout:
    none = torch.zeros(0, 0)
    return Rollout(
        prompts=tuple(prompts),
        tokens=none.long(),
        mask=none.bool(),
        logprobs=none,
        finished=torch.zeros(0, dtype=torch.bool),
        texts=(),
        params=params,
        weights_version=weights_version,
    )
