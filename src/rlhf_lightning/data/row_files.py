"""Random access to the rows of JSONL and Parquet files that may be larger than memory.

Of a JSONL file, where each line begins is kept (16 bytes a line) and one line is read at a time; of a Parquet file, as
many row groups as fit into a fixed number of bytes, at least one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

from rlhf_lightning.data.rows import READERS, Row, json_object, readable_file
from rlhf_lightning.errors import DataError

CACHE_BYTES = 256 * 1024 * 1024
"""Most memory that the row groups of one Parquet file take, unless a single one takes more."""


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


class JsonlFile(RowFile):
    """The lines of a JSONL file, empty ones left out.

    Args:
        path: The file, as the user gave it.
        file: The file.
    """

    def __init__(self, path: str, file: Path) -> None:
        self._path, self._file = path, file
        self._starts, self._numbers = array("q"), array("q")
        self._handle: BinaryIO | None = None
        position = 0
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    self._starts.append(position)
                    self._numbers.append(number)
                position += len(line)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Row:
        if self._handle is None:
            self._handle = self._file.open("rb")
        self._handle.seek(self._starts[index])
        number = self._numbers[index]
        return Row(self._path, number, "line", json_object(self._handle.readline(), f"{self._path}, line {number}"))

    def __getstate__(self) -> dict[str, Any]:
        """Without the open file."""
        return self.__dict__ | {"_handle": None}


class ParquetFile(RowFile):
    """The rows of a Parquet file; the row groups used last are kept.

    Args:
        path: The file, as the user gave it.
        file: The file.
        cache_bytes: Most memory that the kept row groups take.

    Raises:
        DataError: If it is no Parquet file.
    """

    def __init__(self, path: str, file: Path, cache_bytes: int = CACHE_BYTES) -> None:
        self._path, self._file, self._cache_bytes = path, file, cache_bytes
        self._kept: OrderedDict[int, Any] = OrderedDict()
        self._reader: Any = None
        metadata = self._open().metadata
        sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        self._starts = list(accumulate(sizes, initial=0))

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> Row:
        group = bisect_right(self._starts, index) - 1
        fields = self._group(group).slice(index - self._starts[group], 1).to_pylist()[0]
        return Row(self._path, index + 1, "row", fields)

    def __getstate__(self) -> dict[str, Any]:
        """Without the open file."""
        return self.__dict__ | {"_reader": None, "_kept": OrderedDict()}

    def _group(self, group: int) -> Any:
        if group not in self._kept:
            self._kept[group] = self._open().read_row_group(group)
            while len(self._kept) > 1 and sum(table.nbytes for table in self._kept.values()) > self._cache_bytes:
                self._kept.popitem(last=False)
        self._kept.move_to_end(group)
        return self._kept[group]

    def _open(self) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if self._reader is None:
            try:
                self._reader = pq.ParquetFile(self._file)
            except (pa.ArrowException, OSError) as error:
                raise DataError(f"{self._path}: not a readable Parquet file: {error}") from error
        return self._reader


class RowFiles(RowFile):
    """The rows of several files, one after another.

    Args:
        files: The files.
    """

    def __init__(self, files: list[RowFile]) -> None:
        self._files = files
        self._starts = list(accumulate(map(len, files), initial=0))

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> Row:
        which = bisect_right(self._starts, index) - 1
        return self._files[which][index - self._starts[which]]


OPENERS: dict[str, Callable[[str, Path], RowFile]] = {".jsonl": JsonlFile, ".parquet": ParquetFile}
"""How each kind of file is opened, by suffix."""


def open_rows(path: str | list[str]) -> RowFile:
    """The rows of a file, of all files of a folder or a pattern (in the order of their names), or of a list of those.

    Args:
        path: ``train.jsonl``, ``folder``, ``folder/part-*.parquet``, or several.

    Raises:
        DataError: If one is missing or of another kind, or there are no rows at all.
    """
    names = [name for given in ([path] if isinstance(path, str) else path) for name in _names(given)]
    rows = RowFiles([_opened(name) for name in names])
    if not len(rows):
        raise DataError(f"{', '.join(names) or path}: no rows in this file")
    return rows


def _opened(name: str) -> RowFile:
    file = readable_file(name)
    return OPENERS[file.suffix.lower()](name, file)


def _names(path: str) -> list[str]:
    file = Path(path).expanduser()
    if file.is_dir():
        found = sorted(str(p) for p in file.iterdir() if p.suffix.lower() in READERS)
        if not found:
            raise DataError(f"{path}: this folder holds no file that can be read ({', '.join(sorted(READERS))})")
        return found
    if "*" in file.name and not file.is_file():
        found = sorted(str(p) for p in file.parent.glob(file.name) if p.is_file())
        if not found:
            raise DataError(f"{path}: no file matches this pattern")
        return found
    return [path]
