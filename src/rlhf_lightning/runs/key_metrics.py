"""The numbers everyone looks at first, with their units and columns; how far the proxy runs ahead of the truth."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, TypeVar

import pandas as pd

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


@dataclass(frozen=True)
class KeyMetric:
    """A quantity that is shown while a run goes on, drawn at its end and reported.

    Attributes:
        name: Short name; also the picture's file name, with underscores.
        title: What stands over its picture.
        unit: Unit after a value ("" for none).
        columns: Patterns of the columns that may hold it, the best first.
        scale: What a logged value is multiplied with to get the unit.
        better: Whether ``higher`` or ``lower`` is better, or ``""`` where neither is.
        decimals: Digits after the point.
    """

    name: str
    title: str
    unit: str
    columns: tuple[str, ...]
    scale: float = 1.0
    better: str = ""
    decimals: int = 3

    @property
    def file_name(self) -> str:
        """Its picture's file name."""
        return self.name.replace(" ", "_").replace("-", "_").lower() + ".png"

    @property
    def axis_label(self) -> str:
        """Name and unit, for an axis."""
        return f"{self.name} ({self.unit})" if self.unit else self.name

    def column_in(self, columns: Iterable[str]) -> str | None:
        """The column that holds it, or None."""
        known = sorted(columns)
        matching = (name for pattern in self.columns for name in known if fnmatchcase(name, pattern))
        return next(matching, None)

    def text(self, value: float) -> str:
        """A logged value with its unit."""
        return f"{self.digits(value)} {self.unit}" if self.unit else self.digits(value)

    def digits(self, value: float) -> str:
        """A logged value in its unit, without it."""
        return f"{value * self.scale:z.{self.decimals}f}"


KEY_METRICS = (
    KeyMetric(
        "reward",
        "Mean reward of the sampled responses, before any transform",
        "",
        ("reward/raw_mean", "reward/verifier", "reward/raw*", "score/verifier", "reward/mean"),
        better="higher",
    ),
    KeyMetric(
        "held-out accuracy",
        "Greedy accuracy on prompts that are never trained on",
        "%",
        ("held_out/accuracy", "accuracy/held_out"),
        scale=100.0,
        better="higher",
        decimals=1,
    ),
    KeyMetric(
        "KL",
        "KL divergence of the policy from the reference (k1 estimate)",
        "nats/token",
        ("kl/ref_k1_per_token", "kl/ref_k1"),
        decimals=4,
    ),
    KeyMetric(
        "length",
        "Mean length of the sampled responses",
        "tokens",
        ("response/length_mean", "response/length"),
        decimals=1,
    ),
)
"""Those of policies, in the order in which they are shown."""

REWARD_MODEL_METRICS = (
    KeyMetric(
        "loss", "Loss of the reward model: cross-entropy and preferences", "nats", ("loss/reward",), 1.0, "lower"
    ),
    KeyMetric(
        "held-out correctness",
        "Responses told right or wrong, to questions that are never trained on",
        "%",
        ("held_out/correctness_accuracy",),
        scale=100.0,
        better="higher",
        decimals=1,
    ),
    KeyMetric(
        "held-out AUROC",
        "Right responses scored above wrong ones (AUROC), to questions that are never trained on",
        "",
        ("held_out/auroc",),
        better="higher",
    ),
    KeyMetric(
        "held-out pairs",
        "Preference pairs ranked right, to questions that are never trained on",
        "%",
        ("held_out/pairwise_accuracy",),
        scale=100.0,
        better="higher",
        decimals=1,
    ),
    KeyMetric(
        "held-out first error",
        "Earliest wrong step found (F1 as in ProcessBench), in questions that are never trained on",
        "",
        ("held_out/first_error_f1",),
        better="higher",
    ),
)
"""Those of reward models."""


def key_metrics_of(columns: Iterable[str]) -> tuple[KeyMetric, ...]:
    """The key metrics of the kind of run that has these columns; a policy's where nothing tells.

    A reward model is shown those that it has: which there are depends on its data.
    """
    known = list(columns)
    present = tuple(key for key in REWARD_MODEL_METRICS if key.column_in(known) is not None)
    return present or KEY_METRICS


def axis_of(metrics: pd.DataFrame) -> str:
    """What a row of the metrics is: a rollout, or an epoch of a run that makes none."""
    return "epoch" if "time/update" in metrics.columns and "time/rollout" not in metrics.columns else "rollout"


def describe(metrics: Mapping[str, float]) -> list[str]:
    """``name value unit`` of those key metrics that are among the metrics."""
    found = [(key, key.column_in(metrics)) for key in key_metrics_of(metrics)]
    return [
        f"{key.name} {key.text(metrics[column])}"
        for key, column in found
        if column is not None and not math.isnan(metrics[column])
    ]


def duration(seconds: float) -> str:
    """Seconds as people say them: ``4.2 s``, ``3 min 05 s``, ``2 h 07 min``."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def count(number: float) -> str:
    """A large number in few characters: ``950``, ``12.3k``, ``1.5M``."""
    for limit, divisor, unit in ((1e4, 1.0, ""), (1e6, 1e3, "k"), (math.inf, 1e6, "M")):
        if number < limit:
            return f"{number / divisor:.1f}".removesuffix(".0") + unit if unit else f"{number:.0f}"
    return str(number)
