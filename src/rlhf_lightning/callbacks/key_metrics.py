"""The numbers everyone looks at first: what they are called, their units, and the columns that hold them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase


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
