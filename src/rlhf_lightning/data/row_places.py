"""Which files a path stands for, of which kinds they are, and what their rows are called after."""

from __future__ import annotations

import re
from collections.abc import Sequence
from os.path import commonpath
from pathlib import Path

from rlhf_lightning.data.json_rows import COMPRESSED
from rlhf_lightning.errors import DataError
from rlhf_lightning.registry import nearest

LINES, TABLES, JSON = (".jsonl", ".ndjson"), (".csv", ".tsv"), (".json",)
"""What is read line by line, by ``datasets``, and as an array; each may be compressed."""
KINDS = (*LINES, ".parquet", *TABLES, *JSON)
"""The kinds of files that can be read."""
HUB, SAVED = "hub", "saved"
"""The kinds of what is no file: a data set of the hub, and one saved to a folder."""
SAVED_AS = ("state.json", "dataset_dict.json")
"""Files by which a folder that ``save_to_disk`` wrote is known: one data set, or one a split."""
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
Place = tuple[str, Path | None]
"""A name as in messages, and the file or folder that it is; None for the hub."""


def kind_of(file: Path | None) -> str:
    """The kind of a file by its name, of :data:`KINDS` if it can be read; else :data:`HUB` or :data:`SAVED`."""
    if file is None or file.is_dir():
        return HUB if file is None else SAVED
    name = file.name.lower()
    packed = next((suffix for suffix in COMPRESSED if name.endswith(suffix)), "")
    kind = Path(name.removesuffix(packed)).suffix
    return kind + packed if kind == ".parquet" else kind if kind in KINDS else kind + packed


def places_of(path: str) -> list[Place]:
    """The files that a path stands for, in the order of their names.

    Raises:
        DataError: As :func:`rlhf_lightning.data.row_files.open_rows`.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        if any((file / name).is_file() for name in SAVED_AS):
            return [(path, file)]
        return [(str(inner), _readable(str(inner), inner)) for inner in _inside(path, file)]
    if file.is_file():
        return [(path, _readable(path, file))]
    if set("*?[") & set(path):
        below = Path(file.anchor).glob(str(file.relative_to(file.anchor)))
        found = sorted(str(inner) for inner in below if inner.is_file())
        if not found:
            raise DataError(f"{path}: no file matches this pattern")
        return [(name, _readable(name, Path(name))) for name in found]
    if _HUB_NAME.fullmatch(path) and not file.parent.is_dir() and file.suffix.lower() not in (*KINDS, *COMPRESSED):
        return [(path, None)]
    raise DataError(_missing(path, file))


def _inside(path: str, folder: Path) -> list[Path]:
    """The files that a folder stands for, in the order of their names."""
    for below in (folder.iterdir(), folder.rglob("*")):
        found = sorted(file for file in below if file.is_file() and not _hidden(file.relative_to(folder)))
        for kinds in ((*LINES, ".parquet"), TABLES, JSON):
            if of_kind := [file for file in found if kind_of(file) in kinds]:
                return of_kind
    raise DataError(f"{path}: this folder holds no file that can be read ({', '.join(sorted(KINDS))})")


def _hidden(file: Path) -> bool:
    return any(part[0] == "." for part in file.parts) or file.name in ("dataset_info.json", "dataset_infos.json")


def _readable(path: str, file: Path) -> Path:
    """The file, if it is of a kind that can be read, and no pointer to data kept elsewhere."""
    if kind_of(file) not in KINDS:
        suffix = "".join(file.suffixes[-2:]) if file.suffix.lower() in COMPRESSED else file.suffix
        packed = f" (also with {', '.join(sorted(COMPRESSED))}, but for .parquet)"
        raise DataError(f"{path}: cannot read files of kind {suffix!r}; known: {', '.join(sorted(KINDS))}{packed}")
    with file.open("rb") as handle:
        begins = handle.read(100)
    if begins.startswith(b"version https://git-lfs"):
        raise DataError(f"{path}: is a Git LFS pointer, not the data itself; fetch that with: git lfs pull")
    if b"/annex/objects/" in begins.split(b"\n")[0] and not begins.lstrip().startswith((b"{", b"[")):
        raise DataError(f"{path}: is a pointer of git-annex, not the data itself; fetch that with: git annex get")
    return file


def names_of(places: Sequence[Place], split: str | None) -> list[str]:
    """What rows are called after: the file's name; where two have one, their paths from the folder that holds all."""
    short = [f"{Path(place).name}/{split or 'train'}" if file is None else file.name for place, file in places]
    folders = [str(file.absolute().parent) for _, file in places if file is not None]
    common = Path(commonpath(folders)) if folders else Path()
    return [
        name if short.count(name) == 1 else place if file is None else file.absolute().relative_to(common).as_posix()
        for name, (place, file) in zip(short, places, strict=True)
    ]


def _missing(path: str, file: Path) -> str:
    if file.is_symlink():
        return f"{path}: is a link to {file.readlink()}, which is not there"
    if not file.parent.is_dir():
        return f"{path}: no such file, and no folder {file.parent} either"
    names = sorted(p.name for p in file.parent.iterdir() if p.is_file())
    near = nearest(file.name, names) or next((n for n in names if kind_of(Path(n)) in KINDS), None)
    hint = f" The nearest file there is {near!r}" if near else f" {file.parent} holds no file that can be read"
    return f"{path}: no such file.{hint}"
