"""Pictures of a run: its key metrics, against rollouts and prompts seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from rlhf_lightning.callbacks.loggers import run_dir_of
from rlhf_lightning.run_layout import METRICS_FILE, PLOTS_FOLDER
from rlhf_lightning.runs import load_run
from rlhf_lightning.runs.files import after_failure
from rlhf_lightning.runs.key_metrics import KeyMetric, Start, axis_of, count, gains_since, key_metrics_of
from rlhf_lightning.shown import wrapped

COLOR = "#1f5fa8"
PROXY_PICTURE = "proxy_and_truth.png"
WIDTH = 8.0
"""Inches of a picture."""
SMOOTH_FROM = 20
"""From so many points on, a running mean is drawn over them."""


class RunPlots(Callback):
    """Draws ``<run_dir>/plots/*.png`` from the metrics file when a fit ends, also when it is interrupted.

    A metric that the run did not log gets no picture; the report says so.

    Args:
        run_dir: The run's folder; that of the run's CSV logger when not given.
    """

    def __init__(self, run_dir: str | Path | None = None) -> None:
        self.run_dir = run_dir

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the finished run."""
        self._draw(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Draws what there is."""
        with after_failure("plots"):
            self._draw(trainer)

    @rank_zero_only
    def _draw(self, trainer: Trainer) -> None:
        run_dir = run_dir_of(trainer, self.run_dir)
        if (run_dir / METRICS_FILE).is_file():
            draw_run(run_dir)


def draw_run(run_dir: str | Path) -> list[Path]:
    """Draws each key metric that a run has.

    Args:
        run_dir: The run's folder.

    Returns:
        The pictures' paths.

    Raises:
        RunFolderError: If it is no run folder, or its metrics cannot be read.
    """
    run = load_run(run_dir)
    drawn = []
    for key in key_metrics_of(run.metrics.columns):
        points = points_of(run.metrics, key)
        if not points.empty:
            (run.path / PLOTS_FOLDER).mkdir(exist_ok=True)
            drawn.append(run.path / PLOTS_FOLDER / key.file_name)
            draw_metric(points, key, run.name, axis_of(run.metrics)).savefig(drawn[-1], dpi=130)
    figure = draw_proxy_and_truth(run.metrics, run.name)
    if figure is not None:
        (run.path / PLOTS_FOLDER).mkdir(exist_ok=True)
        drawn.append(run.path / PLOTS_FOLDER / PROXY_PICTURE)
        figure.savefig(drawn[-1], dpi=130)
    return drawn


def draw_proxy_and_truth(metrics: pd.DataFrame, run_name: str) -> Figure | None:
    """The proxy's and the truth's gain on held-out prompts since the start, and the gap between; None without a proxy.

    Each is in its own standard deviations at the start, so that the shaded difference is ``held_out/gap``.
    """
    columns = ["rollout", "held_out/proxy", "held_out/proxy_std", "held_out/accuracy"]
    points = metrics.reindex(columns=columns).dropna()
    if points.empty or not points["held_out/proxy_std"].iloc[0] > 0:
        return None
    start = Start(*(float(points[name].iloc[0]) for name in ("held_out/accuracy", *columns[1:3])))
    proxy, truth = gains_since(start, points["held_out/proxy"], points["held_out/accuracy"])
    figure, axes = _figure("Proxy and truth on held-out prompts: gain since the start", run_name)
    axes.fill_between(points["rollout"], proxy, truth, color="0.85", label="gap")
    axes.plot(points["rollout"], proxy, color="#c2410c", marker="o", linewidth=2.0, label="proxy (what is optimised)")
    axes.plot(points["rollout"], truth, color=COLOR, marker="o", linewidth=2.0, label="truth (verifier's accuracy)")
    axes.set_xlabel("rollout")
    axes.set_ylabel("standard deviations at the start")
    axes.legend(frameon=False, fontsize=9, loc="best")
    axes.spines["top"].set_visible(False)
    return figure


def points_of(metrics: pd.DataFrame, key: KeyMetric) -> pd.DataFrame:
    """The metric's points: ``x`` (rollout), ``prompts`` (NaN when unknown) and ``y`` (in the metric's unit)."""
    column = key.column_in(metrics.columns)
    if column is None or "rollout" not in metrics.columns:
        return pd.DataFrame(columns=["x", "prompts", "y"])
    prompts = metrics["prompts_seen"] if "prompts_seen" in metrics.columns else float("nan")
    points = pd.DataFrame({"x": metrics["rollout"], "prompts": prompts, "y": metrics[column] * key.scale})
    return points.dropna(subset=["x", "y"])


def draw_metric(points: pd.DataFrame, key: KeyMetric, run_name: str, axis: str = "rollout") -> Figure:
    """One picture: rollouts along the bottom, prompts seen along the top, first and last value written out."""
    figure, axes = _figure(key.title, run_name)
    _draw_curve(axes, points)
    _label_ends(axes, points, key)
    axes.set_xlabel(axis)
    axes.set_ylabel(key.axis_label)
    axes.margins(x=0.06, y=0.14)
    _prompts_on_top(axes, points, "prompts seen" if axis == "rollout" else "items seen")
    return figure


def _figure(title: str, run_name: str) -> tuple[Figure, Axes]:
    """An empty picture; a long title takes several lines."""
    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(f"{wrapped(title, WIDTH - 0.8, 12)}\n", fontsize=12, loc="left", fontweight="bold")
    name = wrapped(f"run {run_name}", WIDTH - 0.4, 8)
    figure.supxlabel(name, x=0.99, ha="right", fontsize=8, color="0.4")
    axes.grid(alpha=0.25)
    axes.spines["right"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter("{x:g}")  # no power of ten beside the upper axis
    return figure, axes


def _draw_curve(axes: Axes, points: pd.DataFrame) -> None:
    many = len(points) >= SMOOTH_FROM
    axes.plot(
        points["x"],
        points["y"],
        color=COLOR,
        marker="o",
        markersize=5 if not many else 3 if len(points) < 200 else 1.5,
        linewidth=2.0 if not many else 1.0 if len(points) < 200 else 0.5,
        alpha=0.35 if many else 1.0,
        label="each measurement",
    )
    if many:
        width = max(5, len(points) // 25)
        smooth = points["y"].rolling(width, center=True, min_periods=1).mean()
        axes.plot(points["x"], smooth, color=COLOR, linewidth=2.5, label=f"running mean of {width}")
        axes.legend(frameon=False, fontsize=9, loc="best")


def _label_ends(axes: Axes, points: pd.DataFrame, key: KeyMetric) -> None:
    ends = points.iloc[[0, -1]] if len(points) > 1 else points
    axes.plot(ends["x"], ends["y"], "o", color="#c2410c", markersize=7, zorder=5)
    middle = points["y"].median()
    for end in ends.itertuples():
        above = end.y >= middle
        axes.annotate(
            key.text(end.y / key.scale) if len(key.unit) < 2 else key.digits(end.y / key.scale),
            (end.x, end.y),
            xytext=(0, 9 if above else -9),
            textcoords="offset points",
            ha="center",
            va="bottom" if above else "top",
            color="#c2410c",
            fontweight="bold",
            path_effects=[withStroke(linewidth=3, foreground="white")],
            zorder=6,
        )


def _prompts_on_top(axes: Axes, points: pd.DataFrame, label: str) -> None:
    known = points.dropna(subset=["prompts"])
    if known.empty:
        axes.spines["top"].set_visible(False)
        return
    low, high = known["prompts"].min(), known["prompts"].max()
    ticks = [tick for tick in MaxNLocator(nbins=6, integer=True).tick_values(low, high) if low <= tick <= high]
    top = axes.secondary_xaxis("top")
    top.set_xticks(np.interp(ticks, known["prompts"], known["x"]), [count(tick) for tick in ticks])
    top.set_xlabel(label)
