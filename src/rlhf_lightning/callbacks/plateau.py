"""Where a run stopped getting better, what it cost to go on, and whether the reward did not notice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, variance

import pandas as pd
from lightning.pytorch.callbacks import Callback

from rlhf_lightning.callbacks.report import Section
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.registry import nearest
from rlhf_lightning.runs.key_metrics import duration

PROXIES = ("held_out/proxy", "reward/raw_mean")
"""What is optimised, the better column first."""

LEAST_POINTS = 4
"""Fewest points of the reward from which a trend is told."""


class PlateauReport(Callback):
    """Says at the end of a run, in its report, where the held-out metric stopped improving.

    That is at the first measurement after which its best value rose by less than ``tolerance`` to the end of the run,
    if at least ``patience`` measurements came after it. A pause that ends in a further rise is none. Beside it stand
    the rollouts, prompts and seconds that were spent after it, and whether the reward kept rising meanwhile: reward up
    and quality flat is what the paper finds of more training (§4.2.3). Quality is down where the run ended below its
    best by ``tolerance`` or more. The reward is the proxy's mean on held-out
    responses where it is measured, else the mean raw reward in training.

    It needs :class:`RunReport`, which writes what it finds.

    Args:
        metric: Whose plateau; a column of the run's metrics that is better when larger.
        tolerance: Rise of the best value that counts as none, in the metric's unit.
        patience: Fewest measurements that have to follow.

    Raises:
        ConfigError: If a number is out of range.
    """

    def __init__(self, metric: str = "held_out/accuracy", tolerance: float = 0.01, patience: int = 3) -> None:
        if not tolerance > 0 or patience < 1:
            raise ConfigError(
                f"PlateauReport: tolerance must be above 0 and patience at least 1, got {tolerance} and {patience}"
            )
        self.metric, self.tolerance, self.patience = metric, tolerance, patience

    def report_section(self, metrics: pd.DataFrame) -> Section:
        """What is known of the plateau."""
        return Section("Plateau", self._text(metrics))

    def _text(self, metrics: pd.DataFrame) -> str:
        if self.metric not in metrics.columns or "rollout" not in metrics.columns:
            near = nearest(self.metric, metrics.columns)
            hint = f" Did you mean {near}?" if near else ""
            return f"The run logged no {self.metric}, so no plateau can be told.{hint}"
        points = metrics[["rollout", self.metric]].dropna()
        values = points[self.metric].tolist()
        if len(values) <= self.patience:
            return f"Too few measurements of {self.metric} to tell a plateau: {len(values)}, of {self.patience + 1}."
        place = plateau_start(values, tolerance=self.tolerance, patience=self.patience)
        if place is None:
            return f"No plateau: {self.metric} still improved within its last {self.patience} measurements."
        rollout, best = int(points["rollout"].iloc[place]), max(values[: place + 1])
        rise = f"its best value rose by {max(values) - best:.2g} more, from {best:.4g}; it ended at {values[-1]:.4g}"
        found = f"{self.metric} stopped improving at rollout {rollout}: {rise}. "
        quality = "flat" if values[-1] > best - self.tolerance else "down"
        return f"{found}{spent_after(metrics, rollout)} {_reward_text(metrics, rollout, quality)}"


def plateau_start(values: Sequence[float], *, tolerance: float, patience: int) -> int | None:
    """The first place after which the best value rises by less than ``tolerance``, ``patience`` places before the end.

    Args:
        values: Measurements in order, larger is better.
        tolerance: Rise that counts as none.
        patience: Fewest measurements after it.

    Returns:
        Its index, or None where the values were improving to the end.
    """
    peak = max(values, default=math.nan)
    for place in range(len(values) - patience):
        if peak - max(values[: place + 1]) < tolerance:
            return place
    return None


@dataclass(frozen=True)
class Trend:
    """Mean of the earlier and of the later half of some values, and whether the later is surely larger."""

    early: float
    late: float
    rising: bool


def trend_of(values: Sequence[float]) -> Trend | None:
    """Whether values rise: the mean of their later half above that of the earlier by more than 2 standard errors.

    Returns:
        The trend (a middle value belongs to neither half), or None for fewer than 4 values.
    """
    if len(values) < LEAST_POINTS:
        return None
    half = len(values) // 2
    early, late = values[:half], values[-half:]
    error = math.sqrt((variance(early) + variance(late)) / half)
    return Trend(fmean(early), fmean(late), fmean(late) - fmean(early) > 2 * error)


def spent_after(metrics: pd.DataFrame, rollout: int) -> str:
    """What a run spent from ``rollout`` on: rollouts, prompts, seconds in phases, and their share of the run."""
    later = metrics[metrics["rollout"] >= rollout]
    made = "time/rollout" in metrics.columns
    rollouts = int(later["time/rollout"].notna().sum() if made else later["rollout"].max() - rollout)
    text = f"{rollouts} rollouts"
    if "prompts_seen" in metrics.columns:
        text += f", {int(later['prompts_seen'].max() - later['prompts_seen'].min())} prompts"
    times = [name for name in metrics.columns if name.startswith("time/")]
    if not times:
        return f"{text} came after it."
    seconds, whole = float(later[times].sum().sum()), float(metrics[times].sum().sum())
    share = f" ({seconds / whole:.0%} of the run)" if whole > 0 else ""
    return f"{text} and {duration(seconds)}{share} came after it."


def _reward_text(metrics: pd.DataFrame, rollout: int, quality: str) -> str:
    column = next((name for name in PROXIES if name in metrics.columns), None)
    if column is None:
        return "No reward was logged to compare with."
    trend = trend_of(metrics.loc[metrics["rollout"] >= rollout, column].dropna().tolist())
    if trend is None:
        return f"Meanwhile {column} has too few values to tell a trend."
    between = f"from {trend.early:.4g} (mean of its earlier half) to {trend.late:.4g} (later half)"
    if trend.rising:
        return f"Meanwhile {column} kept rising, {between}: reward up, quality {quality}."
    return f"Meanwhile {column} did not rise beyond its noise, {between}."
