"""The tables that are printed."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from step.cases import CASES
from step.summary import PHASES, Summary


def show(summaries: Sequence[Summary], console: Console) -> None:
    """Prints the comparison, then where the time goes."""
    console.print(_comparison(summaries))
    for summary in summaries:
        console.print(_phases(summary))


def _comparison(summaries: Sequence[Summary]) -> Table:
    table = Table(title="One GRPO step: 4 prompts × 8 samples × 64 new tokens, beta 0.04 (medians)")
    for name in ("case", "dtype", "side", "s/step", "CPU-s", "peak MB", "others", "steps", "of the limit"):
        table.add_column(name, justify="left" if name in ("case", "dtype", "side") else "right")
    for summary in summaries:
        title = CASES[summary.case].title
        for side, figures in (("ours", summary.ours), ("TRL", summary.trl)):
            table.add_row(
                title, summary.dtype, side, f"{figures.wall:.2f}", f"{figures.cpu:.2f}", f"{figures.peak_mb:.0f}",
                f"{figures.others:.2f}", str(figures.steps), f"{summary.share_of_ideal(figures):.0%}",
            )  # fmt: skip
            title = ""
        ratio = summary.speed_up
        table.add_row(
            "", "", "[bold]ratio", f"[bold]{ratio['wall']:.2f}×", f"[bold]{ratio['cpu']:.2f}×",
            f"[bold]{summary.memory:.0%}", "", "", f"asked {CASES[summary.case].target:g}×, 50%", end_section=True,
        )  # fmt: skip
    table.caption = (
        "others: cores that other processes kept busy meanwhile. of the limit: CPU-seconds of the step's "
        "products alone, prompts once, at the measured matrix rate, over those taken."
    )
    return table


def _phases(summary: Summary) -> Table:
    rate, total = summary.rate, sum(summary.ideal.values())
    table = Table(
        title=f"{CASES[summary.case].title}, {summary.dtype}: where the time goes",
        caption=f"limit {total / 1e12:.3f} TFLOP = {total / rate['wall'] / 1e9:.2f} s at {rate['wall']:.0f} GFLOP/s "
        f"(best seen; {rate['cpu']:.0f} per CPU-second)",
    )
    table.add_column("phase")
    for name in ("ours s", "ours CPU-s", "of the limit", "TRL s", "TRL CPU-s", "ratio CPU"):
        table.add_column(name, justify="right")
    for phase in (*PHASES, "rest"):
        ours, trl = summary.ours.phases[phase], summary.trl.phases[phase]
        share = summary.share_of_ideal(summary.ours, phase)
        table.add_row(
            phase, f"{ours['wall']:.3f}", f"{ours['cpu']:.3f}", f"{share:.0%}" if share else "",
            f"{trl['wall']:.3f}", f"{trl['cpu']:.3f}", f"{trl['cpu'] / ours['cpu']:.2f}×" if ours["cpu"] else "",
        )  # fmt: skip
    return table
