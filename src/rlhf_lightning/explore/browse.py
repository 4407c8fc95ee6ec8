"""All metrics of some runs, to choose from with the mouse."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from rlhf_lightning.callbacks.key_metrics import key_metrics_of
from rlhf_lightning.explore.figures import plot_metrics
from rlhf_lightning.runs import Run

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
