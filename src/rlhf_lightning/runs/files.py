"""A run's files: written so that a kill costs at most the line being written, and read."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from rlhf_lightning.errors import RunFolderError


def complete_lines(path: Path) -> list[str]:
    """The lines of a text file, without a last one that lacks its line feed because its writer was killed."""
    *lines, rest = path.read_text(encoding="utf-8", errors="replace").split("\n")
    if rest:
        warnings.warn(f"{path}: left out the last line, which is unfinished")
    return lines


def read_table(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Header and rows of a CSV file, as text.

    Raises:
        RunFolderError: If a line has more or fewer fields than the header, with its number.
    """
    rows = list(csv.reader(complete_lines(path)))
    if not rows:
        return [], []
    header, *body = rows
    for number, row in enumerate(body, start=2):
        if len(row) != len(header):
            raise RunFolderError(f"{path}, line {number}: {len(row)} fields, but the header has {len(header)}")
    return header, [dict(zip(header, row, strict=True)) for row in body]


def read_metrics(path: Path) -> pd.DataFrame:
    """A metrics file as numbers, exactly those that were written.

    Raises:
        RunFolderError: If a line cannot be read, with its number.
    """
    header, rows = read_table(path)
    text = io.StringIO()
    writer = csv.DictWriter(text, header)
    writer.writeheader()
    writer.writerows(rows)
    text.seek(0)
    return pd.read_csv(text, float_precision="round_trip") if header else pd.DataFrame()


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file.

    Raises:
        RunFolderError: If a line is not a JSON object, with its number.
    """
    return [parse_json_line(path, number, line) for number, line in enumerate(complete_lines(path), start=1)]


def parse_json_line(path: Path, number: int, line: str) -> dict[str, Any]:
    """The object on line ``number`` (from 1) of ``path``.

    Raises:
        RunFolderError: If it is not a JSON object.
    """
    try:
        found = json.loads(line)
    except json.JSONDecodeError as error:
        raise RunFolderError(f"{path}, line {number}: not JSON: {error}") from error
    if not isinstance(found, dict):
        raise RunFolderError(f"{path}, line {number}: not a JSON object")
    return found


def encodable(value: Any) -> Any:
    """The value with half surrogates in its texts as U+FFFD: a model may write them, a table can't hold them."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [encodable(inner) for inner in value]
    return {key: encodable(inner) for key, inner in value.items()} if isinstance(value, dict) else value


def write_whole(path: Path, text: str) -> None:
    """Replaces a file in one step: after a kill at any moment it holds all of the old text or all of the new."""
    aside = path.with_name(f".{path.name}.partial")
    with aside.open("w", encoding="utf-8", newline="", errors="backslashreplace") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def append(path: Path, text: str) -> None:
    """Adds whole lines at the end of a file and hands them to the operating system at once."""
    with path.open("a", encoding="utf-8", newline="", errors="backslashreplace") as file:
        file.write(text)


@contextmanager
def after_failure(what: str) -> Iterator[None]:
    """For writing when a run has failed: what the system refuses is told, and the run's own reason stays the reason."""
    try:
        yield
    except OSError as error:
        print(f"{what} not written: {error.strerror or error}", file=sys.stderr)
