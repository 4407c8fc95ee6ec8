"""The token loop: choose, append, look for endings, drop what has ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_lightning.border import checked_draws
from rlhf_lightning.functional._threads import torch_threads
from rlhf_lightning.protocols import DecodingSession
from rlhf_lightning.samplers._choice import choose
from rlhf_lightning.samplers._endings import Endings
from rlhf_lightning.samplers._random import uniforms
from rlhf_lightning.types import SamplingParams

CHECK_EVERY = 4
"""Steps between looks for endings. A look costs little, but waits for the device and may compact the batch; the steps
past an ending are thrown away."""

KEEP_ABOVE = 0.8
"""A batch is compacted when no more than this fraction of its rows is unfinished: compaction copies the KV cache, which
costs about as much as attention in one step, so small gains are not worth it."""


@dataclass(frozen=True)
class Drawn:
    """What the loop gives for B sequences.

    Attributes:
        tokens: (B, T) int64, 0 from each length on.
        probs: (B, T) float32 probabilities the tokens were chosen with, 1 from each length on.
        lengths: (B,) int64.
        finished: (B,) True where the response ended by itself.
    """

    tokens: Tensor
    probs: Tensor
    lengths: Tensor
    finished: Tensor


def generate(
    session: DecodingSession,
    *,
    seeds: Tensor,
    params: SamplingParams,
    endings: Endings,
    on_tokens: Callable[[int], None] | None = None,
) -> Drawn:
    """Draws one response a row of the session.

    Args:
        session: The prompts, prefilled; used up.
        seeds: (B,) int64.
        params: How to draw.
        endings: Where responses end.
        on_tokens: Told every few steps how many tokens were added to unfinished responses.

    Raises:
        PartError: If a token was drawn from logits that are not finite.
    """
    loop = _Loop(session, seeds, params, endings)
    with torch_threads(1 if session.single_threaded else None):
        while loop.rows.numel() and loop.step < params.max_new_tokens:
            added = loop.advance(min(CHECK_EVERY, params.max_new_tokens - loop.step))
            if on_tokens is not None:
                on_tokens(added)
    return loop.result()


class _Loop:
    """Rows still decoded, and the columns written so far."""

    def __init__(self, session: DecodingSession, seeds: Tensor, params: SamplingParams, endings: Endings) -> None:
        self.session, self.params, self.endings = session, params, endings
        device, count = session.logits.device, len(seeds)
        self.step = 0
        self.rows = torch.arange(count, device=device)
        self.alive = torch.ones(count, dtype=torch.bool, device=device)
        self.tokens = torch.zeros(count, params.max_new_tokens, dtype=torch.int64, device=device)
        self.probs = torch.ones(count, params.max_new_tokens, device=device)
        self.lengths = torch.zeros(count, dtype=torch.int64, device=device)
        self.uniform = (
            uniforms(seeds.to(device).unsqueeze(1), torch.arange(params.max_new_tokens, device=device)).t().contiguous()
        )
        self.whole = True

    def advance(self, steps: int) -> int:
        """Draws ``steps`` tokens a row, then looks for endings; the number of tokens that count."""
        start = self.step
        columns = [self._draw() for _ in range(steps)]
        tokens, probs = (torch.stack(column, dim=1) for column in zip(*columns, strict=True))
        checked_draws("sampler in_process", torch.where(self.alive[:, None], probs, 1.0).log())
        self._write(start, tokens, probs)
        return self._look(start)

    def result(self) -> Drawn:
        finished = self.lengths > 0
        lengths = torch.where(finished, self.lengths, self.step)
        mask = torch.arange(self.params.max_new_tokens, device=lengths.device) < lengths.unsqueeze(1)
        return Drawn(self.tokens * mask, self.probs.masked_fill(~mask, 1.0), lengths, finished)

    def _draw(self) -> tuple[Tensor, Tensor]:
        uniform = self.uniform[self.step]
        if not self.whole:
            uniform = uniform[self.rows]
        tokens, probs = choose(self.session.logits, uniform, self.params)
        self.step += 1
        if self.step < self.params.max_new_tokens:
            self.session.step(tokens)
        return tokens, probs

    def _write(self, start: int, tokens: Tensor, probs: Tensor) -> None:
        self.tokens[self.rows, start : self.step] = tokens
        self.probs[self.rows, start : self.step] = probs

    def _look(self, start: int) -> int:
        ended = self.endings.find(self.tokens[self.rows, : self.step], start)
        new = torch.where(self.alive & (ended > 0), ended, 0)
        added = torch.where(new > 0, new - start, self.step - start)[self.alive].sum()
        self.lengths[self.rows] += new
        self.alive = self.alive & (ended == 0)
        self._compact()
        return int(added)

    def _compact(self) -> None:
        unfinished = int(self.alive.sum())
        if unfinished and unfinished > KEEP_ABOVE * self.rows.numel():
            return
        kept = self.alive.nonzero().squeeze(1)
        if unfinished and self.step < self.params.max_new_tokens:
            self.session.keep(kept)
        self.rows, self.alive, self.whole = self.rows[kept], self.alive[kept], False
