"""Figures of runs for notebooks: metrics, the KL-reward frontier, and a browser of both."""

from __future__ import annotations

import io
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.runs import Run, frontier, labels
from rlhf_lightning.runs.key_metrics import KeyMetric, axis_of, key_metrics_of
from rlhf_lightning.runs.sample_page import RUN_COLORS
from rlhf_lightning.shown import wrapped

_WIDTH, _HEIGHT = 5.0, 3.4
"""Inches a panel."""


class NotebookFigure(Figure):
    """A figure that a notebook shows where it is a cell's last value, without pyplot."""

    def _repr_png_(self) -> bytes:
        picture = io.BytesIO()
        self.savefig(picture, format="png", dpi=110)
        return picture.getvalue()


def plot_metrics(
    runs: Run | Sequence[Run], metrics: Sequence[str] = (), *, against: str = "rollout", smooth: int = 1
) -> NotebookFigure:
    """One panel a metric, one line a run.

    Args:
        runs: One run or several.
        metrics: Columns of the metrics; the key metrics that the runs have when none is given. A run that lacks one is
            left out of its panel.
        against: What lies along the bottom, ``rollout`` or ``prompts_seen``.
        smooth: Over how many points the thick line is a running mean; 1 draws the points alone.

    Raises:
        ConfigError: If there is no run or nothing to draw, or ``smooth`` is below 1.
        RunFolderError: If no run has a metric of that name.
    """
    runs = _several(runs)
    if smooth < 1:
        raise ConfigError(f"smooth must be at least 1, got {smooth}")
    known = list(dict.fromkeys(str(name) for run in runs for name in run.metrics.columns))
    keys = {key.column_in(known): key for key in key_metrics_of(known)}
    columns = list(metrics) or [name for name in keys if name is not None]
    if not columns:
        raise ConfigError(f"these runs have no key metric; name some of: {', '.join(known)}")
    figure, panels = _panels(len(columns))
    for axes, column in zip(panels, columns, strict=True):
        _draw_metric(axes, runs, column, against, smooth, keys.get(column))
    _legend(figure, panels, runs)
    return figure


def plot_frontier(runs: Run | Sequence[Run], *, reward: str = "reward/raw_mean", label: int = 4) -> NotebookFigure:
    """Reward against KL to the reference: how far each run went from its beginning for what it gained.

    One point a rollout, joined in their order; a run whose line is higher gets more reward for the same KL.

    Args:
        runs: One run or several.
        reward: The metric on the upright axis.
        label: About how many points a run get their rollout's number.

    Raises:
        ConfigError: If there is no run.
        RunFolderError: If a run lacks the reward, or has no KL to a reference.
    """
    runs = _several(runs)
    table = frontier(runs, reward=reward)
    figure, (axes,) = _panels(1, width=7.5, height=4.8)
    for name, color in zip(labels(runs), _colors(runs), strict=True):
        own = table[table["run"] == name]
        axes.plot(
            own["kl"], own["reward"], color=color, marker="o", markersize=4.5, linewidth=1.2, alpha=0.8, label=name
        )
        for place in sorted({int(i) for i in np.linspace(0, len(own) - 1, max(label, 1))} if len(own) else set()):
            point = own.iloc[place]
            axes.annotate(
                f"{point['rollout']:.0f}", (point["kl"], point["reward"]), xytext=(4, 5), textcoords="offset points",
                color=color, fontsize=8,
            )  # fmt: skip
    axes.set_xlabel("KL of policy from reference (k1, nats a response)")
    axes.set_ylabel(reward)
    axes.set_title("Reward against KL (numbers: rollouts)", loc="left", fontsize=11, fontweight="bold")
    _legend(figure, [axes], runs)
    return figure


def _draw_metric(
    axes: Axes, runs: Sequence[Run], column: str, against: str, smooth: int, key: KeyMetric | None
) -> None:
    having = [column in run.metrics.columns for run in runs]
    if not any(having):
        runs[0].column(column)  # raises, with the nearest
    for run, has, color, name in zip(runs, having, _colors(runs), labels(runs), strict=True):
        if has:
            y = run.column(column) * (key.scale if key else 1.0)
            points = y.set_axis(run.column(against)).dropna()
            _draw_line(axes, points.index.to_numpy(), points.to_numpy(), points.rolling(smooth, min_periods=1).mean()
                       if smooth > 1 else None, color, name)  # fmt: skip
    axes.set_title(column if key is None else key.axis_label, loc="left", fontsize=11, fontweight="bold")
    if key is not None:
        axes.set_title(column, loc="right", fontsize=8, color="0.4")
    counted = {axis_of(run.metrics) for run, has in zip(runs, having, strict=True) if has}
    items = "items seen" if counted == {"epoch"} else "prompts seen"
    named = {"rollout": " or ".join(sorted(counted)), "prompts_seen": items}
    axes.set_xlabel(named.get(against, against.replace("_", " ")))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))


def _draw_line(axes: Axes, x: np.ndarray, y: np.ndarray, mean: object, color: str, name: str) -> None:
    few = len(x) < 40
    faint = mean is not None
    axes.plot(x, y, color=color, linewidth=1.0 if faint else 1.8, alpha=0.3 if faint else 1.0,
              marker="o" if few else "", markersize=3.5, label="_" if faint else name)  # fmt: skip
    if faint:
        axes.plot(x, np.asarray(mean), color=color, linewidth=2.2, label=name)


def _panels(count: int, width: float = _WIDTH, height: float = _HEIGHT) -> tuple[NotebookFigure, list[Axes]]:
    columns = 1 if count == 1 else 2
    rows = -(-count // columns)
    figure = NotebookFigure(figsize=(width * columns, height * rows), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for unused in grid[count:]:
        unused.remove()
    for axes in grid[:count]:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.05, y=0.12)
    return figure, grid[:count]


def _legend(figure: Figure, panels: Sequence[Axes], runs: Sequence[Run]) -> None:
    found = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    names = [name for name in labels(runs) if name in found]
    width = figure.get_figwidth()
    shown = [wrapped(name, width - 0.8, 9) for name in names]
    inches = 0.8 + max((len(line) for name in shown for line in name.split("\n")), default=0) * 0.65 * 9 / 72
    columns = max(1, min(4, int(width / inches)))
    lines = [found[name] for name in names]
    figure.legend(lines, shown, loc="outside lower left", ncols=columns, frameon=False, fontsize=9)


def _colors(runs: Sequence[Run]) -> list[str]:
    return [RUN_COLORS[number % len(RUN_COLORS)] for number in range(len(runs))]


def _several(runs: Run | Sequence[Run]) -> list[Run]:
    found = [runs] if isinstance(runs, Run) else list(runs)
    if not found:
        raise ConfigError("there is no run to draw")
    return found


_AXES = ("rollout", "prompts_seen")


def browse_metrics(runs: Run | Sequence[Run]) -> Any:
    """Lets a reader choose metrics, axis and smoothing; without ipywidgets, draws the key metrics and says so.

    Args:
        runs: One run or several.

    Returns:
        A widget, or a figure where the package ``ipywidgets`` is not installed.

    Raises:
        ConfigError: If there is no run or nothing to draw.
    """
    found = [runs] if isinstance(runs, Run) else list(runs)
    figure = plot_metrics(found)
    if find_spec("ipywidgets") is None:
        print("ipywidgets is not installed, so these are the key metrics and nothing to choose from.")
        print("For a chooser: pip install 'rlhf-lightning[notebooks]'. Any metric: plot_metrics(runs, ['NAME', ...])")
        return figure
    return _widget(found)


def choices(runs: Sequence[Run]) -> tuple[list[str], list[str]]:
    """The metrics that can be chosen, by name, and those that are chosen at first: the key metrics."""
    known = {str(name) for run in runs for name in run.metrics.columns} - set(_AXES)
    first = [key.column_in(known) for key in key_metrics_of(known)]
    return sorted(known), [name for name in first if name is not None]


def _widget(runs: Sequence[Run]) -> Any:
    import ipywidgets as widgets
    from IPython.display import display

    known, first = choices(runs)
    axes = [name for name in _AXES if all(name in run.metrics.columns for run in runs)]

    def draw(metrics: tuple[str, ...], against: str, smooth: int) -> None:
        display(plot_metrics(runs, metrics, against=against, smooth=smooth))

    rows = min(len(known), 10)
    return widgets.interactive(
        draw,
        metrics=widgets.SelectMultiple(options=known, value=first[:2], rows=rows, description="metrics"),
        against=widgets.ToggleButtons(options=axes, description="against"),
        smooth=widgets.IntSlider(value=1, min=1, max=50, description="smooth over", continuous_update=False),
    )
