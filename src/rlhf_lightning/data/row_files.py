"""Random access to the rows of files that may be larger than memory, whatever their kind.

Of a file of lines, where each begins is kept (16 bytes a line) and one line is read at a time; of a Parquet file, as
many row groups as fit into a fixed number of bytes, at least one. The rest is memory-mapped by ``datasets``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from bisect import bisect_right
from collections import Counter, OrderedDict
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

from rlhf_lightning.data.json_rows import json_object, open_lines
from rlhf_lightning.data.row_places import HUB, SAVED, TABLES, kind_of, names_of, places_of
from rlhf_lightning.data.rows import Row
from rlhf_lightning.data.tables import csv_table, hub_table, saved_table, table_row, undecodable
from rlhf_lightning.errors import ConfigError, DataError

CACHE_BYTES = 256 * 1024 * 1024
"""Most memory that the row groups of one Parquet file take, unless a single one takes more."""
AT_ONCE = 1024
"""Rows of a row group that are read in one piece."""
OPEN_FILES = 64
"""Files that are held open at once."""


class RowFile(ABC):
    """A file whose rows are read one by one, in any order."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of rows."""

    @abstractmethod
    def __getitem__(self, index: int) -> Row:
        """A row, read now.

        Raises:
            DataError: If it is malformed; names file and line.
        """

    def close(self) -> None:  # noqa: B027  # most have nothing to give up
        """Gives up what can be opened again; reading goes on as before."""


class JsonlFile(RowFile):
    """The lines of a JSONL file, empty ones left out; or the rows of a ``.json`` file.

    Args:
        path: The file, as the user gave it.
        file: The file.
        name: As :attr:`Row.name`.
    """

    def __init__(self, path: str, file: Path, name: str = "") -> None:
        self._path, self._file, self._name = path, file, name
        self._starts, self._numbers = array("q"), array("q")
        self._handle: BinaryIO | None = None
        position = 0
        for number, line in enumerate(self._open(), start=1):
            if line.strip():
                self._starts.append(position)
                self._numbers.append(number)
            position += len(line)
        self.close()

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Row:
        handle = self._open()
        handle.seek(self._starts[index])
        number = self._numbers[index]
        fields = json_object(handle.readline(), f"{self._path}, {self._unit} {number}")
        return Row(self._path, number, self._unit, fields, self._name)

    def close(self) -> None:
        """Gives the open file back, unless it had to be unpacked."""
        if self._handle is not None and self._handle.name == str(self._file):
            self._handle.close()
            self._handle = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the open file."""
        return self.__dict__ | {"_handle": None}

    def _open(self) -> BinaryIO:
        if self._handle is None:
            self._handle, self._unit = open_lines(self._path, self._file)
        return self._handle


class ParquetFile(RowFile):
    """The rows of a Parquet file; the row groups used last are kept.

    Args:
        path: The file, as the user gave it.
        file: The file.
        cache_bytes: Most memory that the kept row groups take.
        name: As :attr:`Row.name`.

    Raises:
        DataError: If it is no Parquet file.
    """

    def __init__(self, path: str, file: Path, cache_bytes: int = CACHE_BYTES, name: str = "") -> None:
        self._path, self._file, self._cache_bytes, self._name = path, file, cache_bytes, name
        self._kept: OrderedDict[int, Any] = OrderedDict()
        self._reader: Any = None
        metadata = self._open().metadata
        sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        self._starts = list(accumulate(sizes, initial=0))

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> Row:
        group = bisect_right(self._starts, index) - 1
        row = self._group(group).slice(index - self._starts[group], 1)
        try:
            fields = row.to_pylist()[0]
        except UnicodeDecodeError as error:
            raise DataError(f"{self._path}, row {index + 1}: {undecodable(row, error)}") from error
        return Row(self._path, index + 1, "row", fields, self._name)

    def __getstate__(self) -> dict[str, Any]:
        """Without the open file."""
        return self.__dict__ | {"_reader": None, "_kept": OrderedDict()}

    def _group(self, group: int) -> Any:
        if group not in self._kept:
            self._kept[group] = self._read(group)
            while len(self._kept) > 1 and sum(table.nbytes for table in self._kept.values()) > self._cache_bytes:
                self._kept.popitem(last=False)
        self._kept.move_to_end(group)
        return self._kept[group]

    def _read(self, group: int) -> Any:
        """A row group, read in pieces: as a whole, Arrow cannot hold one with 2 GiB of nested texts."""
        import pyarrow as pa

        reader = self._open()
        try:
            pieces = list(reader.iter_batches(AT_ONCE, row_groups=[group]))
            return pa.Table.from_batches(pieces, reader.schema_arrow)
        except (pa.ArrowException, OSError) as error:
            first, after = self._starts[group] + 1, self._starts[group + 1]
            broken = next((name for name in reader.schema_arrow.names if not self._reads(group, name)), "?")
            raise DataError(
                f"{self._path}, rows {first} to {after} (row group {group + 1}): field {broken!r} cannot be read: "
                f"{' '.join(str(error).split())}. Write the file again with smaller row groups, if it is their size"
            ) from error

    def _reads(self, group: int, name: str) -> bool:
        import pyarrow as pa

        try:
            for _ in self._open().iter_batches(AT_ONCE, row_groups=[group], columns=[name]):
                pass
        except (pa.ArrowException, OSError):
            return False
        return True

    def _open(self) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if self._reader is None:
            try:
                self._reader = pq.ParquetFile(self._file)
            except (pa.ArrowException, OSError) as error:
                raise DataError(f"{self._path}: not a readable Parquet file: {error}") from error
        return self._reader


class TableFile(RowFile):
    """The rows of a data set that ``datasets`` has read.

    Args:
        path: Where it comes from, as the user gave it.
        table: The data set.
        name: As :attr:`Row.name`.
        all_text: As :attr:`Row.all_text`.
    """

    def __init__(self, path: str, table: Any, name: str = "", all_text: bool = False) -> None:
        self._path, self._table, self._name, self._all_text = path, table, name, all_text

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> Row:
        return table_row(self._table, index, self._path, name=self._name, all_text=self._all_text)


class RowFiles(RowFile):
    """The rows of several files, one after another.

    Args:
        files: The files.
    """

    def __init__(self, files: list[RowFile]) -> None:
        self._files = files
        self._starts = list(accumulate(map(len, files), initial=0))
        self._used: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> Row:
        which = bisect_right(self._starts, index) - 1
        self._used[which] = None
        self._used.move_to_end(which)
        if len(self._used) > OPEN_FILES:
            self._files[self._used.popitem(last=False)[0]].close()
        return self._files[which][index - self._starts[which]]


def read_rows(path: str | list[str], **how: Any) -> list[Row]:
    """All rows, in memory.

    Args:
        path: As :func:`open_rows`.
        how: Also.

    Raises:
        DataError: As :func:`open_rows`, and if a row is malformed.
        ConfigError: As :func:`open_rows`.
    """
    rows = open_rows(path, **how)
    return [rows[index] for index in range(len(rows))]


def open_rows(
    path: str | list[str],
    *,
    subset: str | None = None,
    split: str | None = None,
    columns: Sequence[str] | None = None,
    cache_dir: str | None = None,
) -> RowFile:
    """The rows of a file, a folder, a pattern or a data set of the hub, or of a list of those, one after another.

    Args:
        path: ``train.jsonl`` (``.ndjson``, ``.json``, ``.csv``, ``.tsv``, ``.parquet``; all but the last also with
            ``.gz``, ``.zst`` or ``.bz2`` behind); ``folder``; ``folder/part-*.parquet``, where ``**`` is any folders;
            a folder that ``save_to_disk`` wrote; or ``owner/name`` on the hub, where no such file is. A folder stands
            for its lines and Parquet files in the order of their names, or for its tables where it has none, or its
            ``.json`` files; or for those of the folders in it.
        subset: Which configuration of a data set of the hub.
        split: Which split, of the hub's and of saved ones: ``train`` when not given.
        columns: Names of the columns of CSV files whose first line is a row already.
        cache_dir: Where ``datasets`` keeps what it makes: its own folder for the hub, one for temporary files else.

    Raises:
        DataError: If one is missing (names the nearest file of its folder), of another kind, a pointer to data that
            is not there, or given twice; or if there are no rows at all.
        ConfigError: If subset, split or columns are given for something that has none.
    """
    places = [place for given in ([path] if isinstance(path, str) else path) for place in places_of(given)]
    shown = [place for place, _ in places]
    double = next((place for place, count in Counter(shown).items() if count > 1), None)
    if double:
        raise DataError(f"{double}: is given twice")
    kinds = {kind_of(file) for _, file in places}
    for key, value, needed, what in (
        ("subset", subset, {HUB}, "data sets of the hub"),
        ("split", split, {HUB, SAVED}, "data sets of the hub, and saved ones"),
        ("columns", columns, set(TABLES), "CSV files without a line of names"),
    ):
        if value and not kinds & needed:
            raise ConfigError(f"{', '.join(shown)}: {key} ({value!r}) is for {what}")
    opened: list[RowFile] = []
    for (place, file), name in zip(places, names_of(places, split), strict=True):
        kind = kind_of(file)
        if file is None:
            whole = ", ".join(part for part in (subset, split or "train") if part)
            opened.append(TableFile(f"{place} ({whole})", hub_table(place, subset, split, cache_dir), name))
        elif kind == SAVED:
            opened.append(TableFile(place, saved_table(place, file, split), name))
        elif kind in TABLES:
            opened.append(TableFile(place, csv_table(place, file, columns, cache_dir), name, all_text=True))
        else:
            opened.append(ParquetFile(place, file, name=name) if kind == ".parquet" else JsonlFile(place, file, name))
    rows = RowFiles(opened)
    if not len(rows):
        raise DataError(f"{', '.join(shown) or path}: no rows in this file")
    return rows
