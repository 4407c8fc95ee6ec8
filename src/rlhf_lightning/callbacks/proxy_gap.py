"""How far the score that is optimised has run ahead of the score that is meant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

LEAST_DEVIATION = 0.1
"""Least standard deviation that correctness is taken to have; that of an accuracy of 1 % or 99 %."""


T = TypeVar("T", bound=Any)


class Start(NamedTuple):
    """The first measurement of a run.

    Attributes:
        accuracy: Share of held-out greedy responses that are right.
        proxy: Mean proxy score of the same responses.
        proxy_std: Its population standard deviation over them.
    """

    accuracy: float
    proxy: float
    proxy_std: float


def start_of(measured: Mapping[str, float]) -> Start | None:
    """The measurement to compare later ones with; None where there is no proxy."""
    names = ("held_out/accuracy", "held_out/proxy", "held_out/proxy_std")
    return Start(*(measured[name] for name in names)) if all(name in measured for name in names) else None


def gap_since(start: Start | None, measured: Mapping[str, float]) -> dict[str, float]:
    r"""What the proxy has gained since the start beyond what the truth has, each in its own standard deviations.

    ``(proxy − proxy₀) / std₀(proxy) − (accuracy − accuracy₀) / √(accuracy₀ (1 − accuracy₀))``, the last root at least
    0.1. So it is 0 at the start whatever the proxy's unit, and rises where the reward goes up and the quality does not
    (the paper, §4.2; Gao et al. 2022, arXiv 2210.10760, standardise reward models in the same spirit).

    Args:
        start: The first measurement.
        measured: The one of now.

    Returns:
        ``held_out/gap``; nothing without a proxy, or where it had given all responses the same score.
    """
    if start is None or start.proxy_std == 0 or "held_out/proxy" not in measured:
        return {}
    proxy, truth = gains_since(start, measured["held_out/proxy"], measured["held_out/accuracy"])
    return {"held_out/gap": proxy - truth}


def gains_since(start: Start, proxy: T, accuracy: T) -> tuple[T, T]:
    """What the proxy and the truth have gained since the start, each in its own standard deviations."""
    deviation = max((start.accuracy * (1 - start.accuracy)) ** 0.5, LEAST_DEVIATION)
    return (proxy - start.proxy) / start.proxy_std, (accuracy - start.accuracy) / deviation
