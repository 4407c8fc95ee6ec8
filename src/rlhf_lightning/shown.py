"""What is shown fits where it is shown: tables on a terminal, titles and names in a picture."""

from __future__ import annotations

from textwrap import fill

from rich.console import Console
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

FOLDED = 12
"""Columns that a text which may be folded has at least in a table."""


def wrapped(text: str, inches: float, points: float) -> str:
    """A text in lines that fit.

    Args:
        text: Any text.
        inches: Room for a line.
        points: Size of its letters; a bold one of the default font is about 0.72 of that wide.
    """
    return "\n".join(fill(line, max(8, int(inches * 72 / (0.72 * points)))) for line in text.split("\n"))


def show_table(console: Console, table: Table) -> None:
    """Prints a table whole: long texts are folded, and where its columns do not fit each row becomes a paragraph.

    Args:
        console: Where to.
        table: Its columns with ``no_wrap`` stay in one line; all others may be folded.
    """
    for column in table.columns:
        column.overflow = "fold"
    if sum(_least(column) + 3 for column in table.columns) + 1 <= console.width:
        console.print(table)
        return
    if table.title is not None:
        console.print(table.title if isinstance(table.title, Text) else Text(str(table.title), style="bold"))
    for row in zip(*([_text(cell) for cell in column.cells] for column in table.columns), strict=True):
        named = [(_text(column.header), cell, column.no_wrap) for column, cell in zip(table.columns, row, strict=True)]
        first, *others = [(head, cell, short) for head, cell, short in named if cell.plain]
        short = [Text(" ").join([head, cell]) for head, cell, one_line in others if one_line]
        console.print(first[1], style="bold")
        if short:
            console.print(Padding(Text(", ").join(short), (0, 0, 0, 2)))
        for head, cell, one_line in others:
            if not one_line:
                console.print(Padding(Text(": ").join([head, cell]), (0, 0, 0, 2)))


def _least(column: Column) -> int:
    texts = [_text(cell) for cell in (column.header, *column.cells)]
    if column.no_wrap:
        return max(text.cell_len for text in texts)
    return min(FOLDED, max(text.cell_len for text in texts))


def _text(cell: object) -> Text:
    return cell if isinstance(cell, Text) else Text.from_markup(str(cell))
