"""The pairs that both sides train on: random tokens of fixed lengths, the same for both."""

from __future__ import annotations

import random

PROMPT_TOKENS, ANSWER_TOKENS, PAIRS = 128, 128, 8
"""Tokens of a prompt and of each answer (the end-of-sequence token is the last of them), and pairs an update."""

LEARNING_RATE = 1e-9
"""Changes nothing, so that every step is the same work."""

Pair = tuple[list[int], list[int], list[int]]
"""Prompt, chosen answer, rejected answer."""


def pairs(count: int, vocabulary: int, eos: int, seed: int = 0) -> list[Pair]:
    """So many pairs."""
    rng = random.Random(seed)

    def draw(length: int) -> list[int]:
        return [rng.randrange(100, vocabulary) for _ in range(length)]

    return [
        (draw(PROMPT_TOKENS), [*draw(ANSWER_TOKENS - 1), eos], [*draw(ANSWER_TOKENS - 1), eos]) for _ in range(count)
    ]
