"""How responses are drawn; part of :mod:`rlhf_lightning.types`."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class SamplingParams:
    """How responses are drawn.

    Attributes:
        max_new_tokens: Longest response, in tokens, the end-of-sequence token included.
        temperature: Divides the logits; 0 means greedy decoding.
        top_k: Keep the k most likely tokens; 0 keeps all.
        top_p: Keep the smallest set of tokens whose probability reaches this; 1 keeps all.
        stop: Texts that end a response when they appear in it. They stay in the response.
        keep_special_tokens: Whether the texts of responses, stop texts included, have the special tokens that the
            policy wrote (``<think>``, ``<|im_start|>``); those that end them, and padding, are always left out.

    Raises:
        ValueError: If a value is out of range.
    """

    max_new_tokens: int = 64
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    keep_special_tokens: bool = True

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be 0 (greedy) or more, got {self.temperature} (a finite number)")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (off) or more, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")

    @property
    def full_support(self) -> bool:
        """Whether every token can be drawn, so that sampler and trainer describe the same distribution."""
        return self.temperature > 0 and self.top_k == 0 and self.top_p == 1.0
