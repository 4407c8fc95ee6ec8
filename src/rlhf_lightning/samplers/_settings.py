"""Sampler arguments from a configuration, with errors that name the key."""

from __future__ import annotations

import torch

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.registry import did_you_mean
from rlhf_lightning.types import SamplingParams

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", "float64")}
"""Types that weights may be decoded in."""


def sampling_params(
    sampler: str,
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    stop: list[str] | None,
    keep_special_tokens: bool = True,
) -> SamplingParams:
    """The parameters, checked.

    Raises:
        ConfigError: If one is out of range, or a stop text is empty.
    """
    if stop and "" in stop:
        raise ConfigError(f"sampler {sampler}: stop holds an empty text, which would end every response at once")
    try:
        return SamplingParams(max_new_tokens, temperature, top_k, top_p, tuple(stop or ()), keep_special_tokens)
    except ValueError as error:
        raise ConfigError(f"sampler {sampler}: {error}") from error


def dtype_of(name: str | None, sampler: str = "in_process") -> torch.dtype | None:
    """The torch type of that name, or None for None.

    Raises:
        ConfigError: If there is none, with the nearest.
    """
    if name is None:
        return None
    if name not in DTYPES:
        hint = did_you_mean(name, DTYPES)
        raise ConfigError(f"sampler {sampler}: dtype {name!r} is unknown.{hint} Known: {', '.join(DTYPES)}")
    return DTYPES[name]
