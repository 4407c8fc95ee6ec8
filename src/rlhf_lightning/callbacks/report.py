"""The end of a run in one table, on the terminal and as ``report.md``."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import pandas as pd
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from rlhf_lightning.callbacks.loggers import run_dir_of
from rlhf_lightning.callbacks.plots import PROXY_PICTURE
from rlhf_lightning.run_layout import METRICS_FILE, PLOTS_FOLDER, REPORT_FILE
from rlhf_lightning.runs import Run, load_run
from rlhf_lightning.runs.files import after_failure, write_whole
from rlhf_lightning.runs.key_metrics import KeyMetric, axis_of, count, duration, key_metrics_of
from rlhf_lightning.shown import show_table

OTHER_METRICS = (
    KeyMetric("truncated", "", "%", ("response/truncated",), scale=100.0, better="lower", decimals=1),
    KeyMetric("failed scores", "", "%", ("score/failed",), scale=100.0, better="lower", decimals=1),
    KeyMetric("groups without signal", "", "%", ("reward/dead_groups",), scale=100.0, better="lower", decimals=1),
    KeyMetric("policy loss", "", "", ("loss/policy",), decimals=4),
    KeyMetric("value loss", "", "", ("loss/value",), better="lower", decimals=4),
    KeyMetric("explained variance of values", "", "", ("value/explained_variance",), better="higher"),
    KeyMetric("skipped updates", "", "%", ("update/skipped",), scale=100.0, better="lower", decimals=1),
    KeyMetric("calibration error", "", "", ("held_out/calibration_error",), better="lower"),
    KeyMetric("step F1", "", "", ("held_out/step_f1",), better="higher"),
    KeyMetric("gradient norm", "", "", ("grad_norm/policy", "grad_norm/backbone")),
)
"""In the table, but not drawn."""

WIDTH = 120
"""Columns where there is no terminal that would say."""

_NOT_RESULTS = ("rollout", "prompts_seen", "step", "epoch", "time/", "speed/", "memory/")


@dataclass(frozen=True)
class ReportTable:
    """A table of texts.

    Attributes:
        title: What it is about.
        header: Column names.
        rows: As many texts each as the header has.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


FINISHED = "finished"
"""How the status of a run begins that came to its end."""


@dataclass(frozen=True)
class Section:
    """A finding.

    Attributes:
        title: What it is about.
        text: One or two sentences.
    """

    title: str
    text: str


@runtime_checkable
class Reporting(Protocol):
    """A callback that has something to say in the report."""

    def report_section(self, metrics: pd.DataFrame) -> Section | None:
        """What it found, given the run's metrics, or None."""


@runtime_checkable
class Doubting(Protocol):
    """A callback that can tell that a run which came to its end is not to be trusted."""

    def warnings(self, metrics: pd.DataFrame) -> list[str]:
        """Why not, a clause each; nothing where all is well."""


class RunReport(Callback):
    """Prints a summary when a fit ends, also when it is interrupted, and writes it to ``<run_dir>/report.md``.

    First, last and best of the key metrics, what other callbacks found, time and tokens a second by phase, peak memory,
    and the pictures. It must stand after the callback that draws them.

    Args:
        run_dir: The run's folder; that of the run's CSV logger when not given.
    """

    def __init__(self, run_dir: str | Path | None = None) -> None:
        self.run_dir = run_dir
        self.console = Console() if sys.stdout.isatty() else Console(width=WIDTH)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reports the finished run."""
        self._report(trainer, None)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Reports what there is, and what ended it."""
        with after_failure("report"):
            self._report(trainer, exception)

    @rank_zero_only
    def _report(self, trainer: Trainer, exception: BaseException | None) -> None:
        run_dir = run_dir_of(trainer, self.run_dir)
        if not (run_dir / METRICS_FILE).is_file():
            return
        run = load_run(run_dir)
        status, sections = status_of(run.metrics, exception, _callbacks(trainer)), sections_of(trainer, run.metrics)
        write_whole(run.path / REPORT_FILE, as_markdown(run, status, sections))
        self.console.print(f"\n{run.path}: {status}", markup=False, highlight=False, soft_wrap=True)
        for table in tables_of(run.metrics):
            show_table(self.console, as_rich(table))
        for section in sections:
            self.console.print(f"{section.title}: {section.text}", markup=False, highlight=False, soft_wrap=True)


def sections_of(trainer: Trainer, metrics: pd.DataFrame) -> list[Section]:
    """What the trainer's callbacks found."""
    found = [callback.report_section(metrics) for callback in _callbacks(trainer) if isinstance(callback, Reporting)]
    return [section for section in found if section is not None]


def _callbacks(trainer: Trainer) -> list[Callback]:
    return getattr(trainer, "callbacks", [])


def is_finished(run_dir: Path) -> bool:
    """Whether a run came to its end, by what its report says."""
    file = run_dir / REPORT_FILE
    said = file.read_text(encoding="utf-8").split("\n\n", 2)[1:2] if file.is_file() else []
    return any(text.lower().startswith(FINISHED) for text in said)


def status_of(metrics: pd.DataFrame, exception: BaseException | None, callbacks: Sequence[Callback] = ()) -> str:
    """How a run ended, how many rollouts it made, and why it is not to be trusted where a callback says so."""
    doubts = [why for callback in callbacks if isinstance(callback, Doubting) for why in callback.warnings(metrics)]
    how = "ended with a warning" if doubts else FINISHED
    how = how if exception is None else f"interrupted by {type(exception).__name__}"
    return f"{how}{_made(metrics)}{': ' * bool(doubts)}{'; '.join(doubts)}"


def _made(metrics: pd.DataFrame) -> str:
    if "rollout" not in metrics.columns or metrics["rollout"].dropna().empty:
        return ""
    noun, phase = ("rollout", "time/rollout") if "time/rollout" in metrics.columns else ("epoch", "time/update")
    made = int(metrics[phase].notna().sum()) if phase in metrics.columns else len(metrics)
    return f" after {made} {noun}{'' if made == 1 else 's'}"


def tables_of(metrics: pd.DataFrame) -> list[ReportTable]:
    """The tables of a report; those without rows are left out."""
    tables = [metrics_table(metrics), time_table(metrics), memory_table(metrics)]
    return [table for table in tables if table.rows]


def metrics_table(metrics: pd.DataFrame) -> ReportTable:
    """First, last and best value of the key metrics, or of every column for a run that has none of them."""
    keys = [(key, key.column_in(metrics.columns)) for key in (*key_metrics_of(metrics.columns), *OTHER_METRICS)]
    present = [(key, column) for key, column in keys if column is not None]
    if not present:
        own = [name for name in metrics.columns if not name.startswith(_NOT_RESULTS)]
        present = [(KeyMetric(name, "", "", (name,), decimals=4), name) for name in own]
    axis = "rollout" if "rollout" in metrics.columns else "step"
    rows = [_metric_row(key, metrics[[axis, column]].dropna(), axis) for key, column in present]
    at = axis_of(metrics) if "rollout" in metrics.columns else axis
    return ReportTable("Metrics", ("metric", "unit", "first", "last", "best", f"at {at}"), tuple(filter(None, rows)))


def _metric_row(key: KeyMetric, points: pd.DataFrame, axis: str) -> tuple[str, ...] | None:
    if points.empty:
        return None
    values = points.iloc[:, -1]
    ends = (key.name, key.unit, key.digits(values.iloc[0]), key.digits(values.iloc[-1]))
    if not key.better:
        return (*ends, "", "")
    best = values.idxmax() if key.better == "higher" else values.idxmin()
    return (*ends, key.digits(values[best]), f"{int(points[axis][best])}")


def time_table(metrics: pd.DataFrame) -> ReportTable:
    """Seconds of each phase over the whole run, its share, and its tokens a second."""
    totals = {name.removeprefix("time/"): metrics[name].sum() for name in metrics.columns if name.startswith("time/")}
    whole = sum(totals.values())
    rows = [
        (phase, duration(seconds), f"{seconds / whole:.0%}", _speed(metrics, phase))
        for phase, seconds in sorted(totals.items(), key=lambda item: -item[1])
        if whole > 0
    ]
    total = [("all phases", duration(whole), "100%", "")] if rows else []
    return ReportTable("Time", ("phase", "time", "share", "tokens/s"), (*rows, *total))


def _speed(metrics: pd.DataFrame, phase: str) -> str:
    column = f"speed/{phase}_tokens_per_s"
    if column not in metrics.columns:
        return ""
    both = metrics[[f"time/{phase}", column]].dropna()
    seconds = both[f"time/{phase}"].sum()
    return count((both[column] * both[f"time/{phase}"]).sum() / seconds) if seconds else ""


def memory_table(metrics: pd.DataFrame) -> ReportTable:
    """Most memory held, by kind."""
    names = {"memory/peak_rss_gib": "main memory (resident)", "memory/peak_cuda_gib": "CUDA device (allocated)"}
    rows = [(text, f"{metrics[name].max():.2f} GiB") for name, text in names.items() if name in metrics.columns]
    return ReportTable("Peak memory", ("where", "most"), tuple(rows))


def as_rich(table: ReportTable) -> Table:
    """The table for a terminal."""
    drawn = Table(title=table.title, title_justify="left", title_style="bold", header_style="dim", box=SIMPLE_HEAD)
    for i, name in enumerate(table.header):
        drawn.add_column(name, justify="left" if i == 0 else "right", no_wrap=i > 0)
    for row in table.rows:
        drawn.add_row(*row)
    return drawn


def as_markdown(run: Run, status: str, sections: Sequence[Section] = ()) -> str:
    """The whole report, with the pictures embedded and the missing ones named."""
    text = io.StringIO()
    text.write(f"# Run {run.name}\n\n{status[0].upper()}{status[1:]}.\n")
    text.writelines(f"\n## {section.title}\n\n{section.text}\n" for section in sections)
    for table in tables_of(run.metrics):
        text.write(f"\n## {table.title}\n\n| {' | '.join(table.header)} |\n")
        text.write(f"|{' --- |' + ' ---: |' * (len(table.header) - 1)}\n")
        text.writelines(f"| {' | '.join(row)} |\n" for row in table.rows)
    text.write("\n## Pictures\n\n")
    text.writelines(_picture(run, key) for key in key_metrics_of(run.metrics.columns))
    if (run.path / PLOTS_FOLDER / PROXY_PICTURE).is_file():
        text.write(f"![Proxy and truth on held-out prompts]({PLOTS_FOLDER}/{PROXY_PICTURE})\n\n")
    return text.getvalue()


def _picture(run: Run, key: KeyMetric) -> str:
    if (run.path / PLOTS_FOLDER / key.file_name).is_file():
        return f"![{key.title}]({PLOTS_FOLDER}/{key.file_name})\n\n"
    return f"No picture of {key.name}: the run logged no {' or '.join(key.columns)}.\n\n"
