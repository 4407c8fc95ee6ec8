"""Best-of-N curves on the terminal."""

from __future__ import annotations

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from rlhf_lightning.shown import show_table


def print_curves(table: pd.DataFrame, console: Console) -> None:
    """One table a generator: a line a row, an N a column, accuracies in percent, with the last N's 95 % interval."""
    for generator, own in table.groupby("generator", sort=False):
        first = own.iloc[0]
        title = f"\n{generator}: accuracy of the best of N in %, {first['prompts']} prompts of {first['pool']} samples"
        console.print(title, style="bold", markup=False, highlight=False, soft_wrap=True)
        show_table(console, _curves(own))


def _curves(own: pd.DataFrame) -> Table:
    sizes = sorted(own["n"].unique())
    drawn = Table(header_style="dim", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    drawn.add_column("chosen by")
    for n in sizes:
        drawn.add_column(str(n), justify="right", no_wrap=True)
    drawn.add_column(f"interval at {sizes[-1]}", justify="right", no_wrap=True)
    for (scorer, aggregation), rows in own.groupby(["scorer", "aggregation"], sort=False):
        by_n = rows.set_index("n")
        name = f"{scorer} ({aggregation})" if aggregation else str(scorer)
        last = by_n.loc[sizes[-1]]
        interval = f"{100 * last['low']:.0f} – {100 * last['high']:.0f}"
        drawn.add_row(name, *(f"{100 * by_n.loc[n, 'accuracy']:.1f}" for n in sizes), interval)
    return drawn
