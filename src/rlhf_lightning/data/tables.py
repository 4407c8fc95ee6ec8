"""Rows that the ``datasets`` library reads: CSV files, data sets saved to a folder, and those of the hub."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from rlhf_lightning.data.json_rows import COMPRESSED, unpacked
from rlhf_lightning.data.rows import Row
from rlhf_lightning.errors import ConfigError, DataError
from rlhf_lightning.registry import check_choice


def csv_table(path: str, file: Path, columns: Sequence[str] | None, cache_dir: str | None) -> Any:
    """A CSV or TSV file as a data set of texts: what a cell holds is kept as it stands there, ``007`` and ``NA`` too.

    The rows lie in memory-mapped Arrow files, in ``cache_dir`` if there is one; else in a folder for temporary files
    that goes when the process ends.

    Args:
        path: The file, as the user gave it.
        file: The file.
        columns: Names of the columns, for a file whose first line is a row already.
        cache_dir: A folder to keep the rows in.

    Raises:
        DataError: If it cannot be read as such; says where.
    """
    scratch = cache_dir or str(Path(_scratch().name) / "cache")
    ending = next((suffix for suffix in COMPRESSED if file.name.lower().endswith(suffix)), "")
    separator = "\t" if file.name.lower().removesuffix(ending).endswith(".tsv") else ","
    if ending:
        with unpacked(path, file, COMPRESSED[ending]) as whole, tempfile.NamedTemporaryFile(
            dir=_scratch().name, delete=False
        ) as plain:  # fmt: skip
            while piece := whole.read(1 << 20):
                plain.write(piece)
            file = Path(plain.name)

    def load() -> Any:
        import pandas as pd
        from datasets import Features, Value, load_dataset

        options: dict[str, Any] = {"sep": separator, "encoding": "utf-8-sig", "keep_default_na": False}
        if file.stat().st_size == 0:
            return []
        top = pd.read_csv(file, header=None, nrows=2, dtype=str, **options)
        names = list(columns or top.iloc[0])
        if len(names) != top.shape[1] or len(set(names)) < len(names):
            raise ValueError(f"its {top.shape[1]} columns need as many names, all different, not {', '.join(names)}")
        if len(top) == 1 and not columns:
            return []
        options |= {"header": None if columns else 0, "column_names": names}
        features = Features({name: Value("string") for name in names})
        return load_dataset(
            "csv", data_files=str(file), split="train", cache_dir=scratch, features=features, **options
        )  # fmt: skip

    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                at = f"{error.reason} at byte {error.start + 1}"
                raise DataError(f"{path}, line {number}: not UTF-8 text ({at})") from error
    return _loaded(path, load, quiet=True)


def saved_table(path: str, folder: Path, split: str | None) -> Any:
    """A data set, or a split of several, that ``save_to_disk`` wrote; its Arrow files are memory-mapped.

    Raises:
        DataError: If it cannot be read.
        ConfigError: If there is no such split; names those there are.
    """
    from datasets import load_from_disk

    found = _loaded(path, lambda: load_from_disk(str(folder)))
    if (folder / "dataset_dict.json").is_file():
        check_choice(split or "train", found, f"{path}: split")
        return found[split or "train"]
    if split is not None:
        raise ConfigError(f"{path}: this folder is one data set, without splits; leave split ({split!r}) out")
    return found


def hub_table(path: str, subset: str | None, split: str | None, cache_dir: str | None) -> Any:
    """A split of a data set of the hub, ``train`` when not given; without a network, from the library's cache.

    Raises:
        DataError: If there is neither, or no such subset or split; with the library's own words.
    """
    from datasets import load_dataset

    return _loaded(
        path,
        lambda: load_dataset(path, subset, split=split or "train", cache_dir=cache_dir),
        "no such file; as a name of the hub, ",
    )


def table_row(table: Any, index: int, path: str, **about: Any) -> Row:
    """A row of a data set.

    Raises:
        DataError: If a text in it is no UTF-8; names the field.
    """
    try:
        fields = table[index]
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, row {index + 1}: {undecodable(table.with_format('arrow')[index], error)}") from error
    return Row(path, index + 1, "row", fields, **about)


def undecodable(table: Any, error: UnicodeDecodeError) -> str:
    """What is wrong with a slice of an Arrow table of which a text cannot be decoded."""
    broken = next((name for name in table.column_names if not _decodes(table[name])), "?")
    return f"not UTF-8 text ({error.reason} at byte {error.start + 1}) in field {broken!r}"


def _decodes(column: Any) -> bool:
    try:
        column.to_pylist()
    except UnicodeDecodeError:
        return False
    return True


def _loaded(path: str, load: Callable[[], Any], before: str = "", *, quiet: bool = False) -> Any:
    """What ``load`` gives; its errors in one line, the innermost cause first."""
    from datasets.exceptions import DatasetBuildError
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    shown = not are_progress_bars_disabled()
    if quiet:
        disable_progress_bars()
    try:
        return load()
    except Exception as error:
        cause: BaseException = error
        while isinstance(cause, DatasetBuildError) and cause.__cause__ is not None:
            cause = cause.__cause__
        said = " ".join(str(cause).split()) or type(cause).__name__
        cannot_write = isinstance(cause, OSError) and cause.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
        hint = ". Give cache_dir (or HF_DATASETS_CACHE), a folder that can be written" if cannot_write else ""
        raise DataError(f"{path}: {before}datasets cannot read it: {said}{hint}") from error
    finally:
        if quiet and shown:
            enable_progress_bars()


@cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder that goes when the process ends."""
    return tempfile.TemporaryDirectory(prefix="rlhf-rows-")
