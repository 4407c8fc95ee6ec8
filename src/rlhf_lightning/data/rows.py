"""Rows of JSONL and Parquet files, each with the place it stands at, so that an error can name it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_lightning.errors import DataError
from rlhf_lightning.registry import did_you_mean, nearest


@dataclass(frozen=True)
class Row:
    """One row of a file.

    Attributes:
        path: The file, as the user gave it.
        number: Line of a JSONL file, row of a Parquet file, from 1.
        unit: ``"line"`` or ``"row"``.
        fields: The values by field name.
    """

    path: str
    number: int
    unit: str
    fields: Mapping[str, Any]

    @property
    def place(self) -> str:
        """File and line, for messages."""
        return f"{self.path}, {self.unit} {self.number}"

    def text(self, field: str) -> str:
        """The text in ``field``; numbers are written out.

        Raises:
            DataError: If the field is missing, or holds neither text nor a number; names the fields there are.
        """
        if field not in self.fields:
            hint = did_you_mean(field, self.fields)
            raise DataError(f"{self.place}: no field {field!r}.{hint} Present: {', '.join(self.fields) or 'none'}")
        value = self.fields[field]
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise DataError(f"{self.place}: field {field!r} must be text or a number, got {type(value).__name__}")
        return str(value)


def read_rows(path: str) -> list[Row]:
    """All rows of a file; the suffix says how it is read (:data:`READERS`).

    Args:
        path: A ``.jsonl`` or ``.parquet`` file. Empty lines of a JSONL file are skipped.

    Raises:
        DataError: If the file is missing (names the nearest file of its folder), of another kind, malformed (names the
            line), or has no rows.
    """
    file = readable_file(path)
    rows = list(READERS[file.suffix.lower()](path, file))
    if not rows:
        raise DataError(f"{path}: no rows in this file")
    return rows


def readable_file(path: str) -> Path:
    """The file of that name, of a kind that can be read.

    Raises:
        DataError: If it is missing (names the nearest file of its folder), or of another kind.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise DataError(_missing(path, file))
    if file.suffix.lower() not in READERS:
        raise DataError(f"{path}: cannot read files of kind {file.suffix!r}; known: {', '.join(sorted(READERS))}")
    return file


def question_key(question: str) -> str:
    """The question whatever its white space: two problems with one key are the same."""
    return " ".join(question.split())


def _jsonl(path: str, file: Path) -> Iterator[Row]:
    for number, line in enumerate(file.read_bytes().split(b"\n"), start=1):
        if line.strip():
            yield Row(path, number, "line", json_object(line, f"{path}, line {number}"))


def json_object(line: bytes, place: str) -> dict[str, Any]:
    """The JSON object that a line holds.

    Raises:
        DataError: If it is no UTF-8, no JSON, or no object; the text starts with ``place``.
    """
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{place}: not UTF-8 text ({error.reason} at byte {error.start + 1})") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{place}: not valid JSON, {error.msg} at column {error.colno}") from error
    if not isinstance(value, dict):
        raise DataError(f"{place}: must be a JSON object, got {type(value).__name__}")
    return value


def _parquet(path: str, file: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(file)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file: {error}") from error
    for number, fields in enumerate(table.to_pylist(), start=1):
        yield Row(path, number, "row", fields)


READERS: dict[str, Callable[[str, Path], Iterator[Row]]] = {".jsonl": _jsonl, ".parquet": _parquet}
"""How each kind of file is read, by suffix."""


def _missing(path: str, file: Path) -> str:
    if file.is_dir():
        return f"{path}: is a folder, not a file"
    if not file.parent.is_dir():
        return f"{path}: no such file, and no folder {file.parent} either"
    names = sorted(p.name for p in file.parent.iterdir() if p.is_file())
    near = nearest(file.name, names) or next((n for n in names if Path(n).suffix in READERS), None)
    hint = f" The nearest file there is {near!r}" if near else f" {file.parent} holds no file that can be read"
    return f"{path}: no such file.{hint}"
