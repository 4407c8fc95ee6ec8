"""JSON as it is published: one object a line, an array of objects, or one object a file."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any, BinaryIO, cast

from rlhf_lightning.errors import DataError

IN_MEMORY = 64 * 1024 * 1024
"""Bytes up to which an unpacked file is held in memory; a larger one goes to the folder for temporary files."""
COMPRESSED = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
"""How a file is packed, by the end of its name."""
ROWS_INSIDE = ("data", "rows", "examples")
"""Where the rows of a file that is one object are looked for."""

_MARK = b"\xef\xbb\xbf"
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}:]')
_HALF_ESCAPED = re.compile(rb"\\u[dD][89a-fA-F]")
_HALF = re.compile("[\ud800-\udfff]")
_BLANK = re.compile(r"[ \t\r\n]*")


def json_object(line: bytes, place: str) -> dict[str, Any]:
    """The JSON object that a line holds.

    Raises:
        DataError: If it is no UTF-8, no JSON, no object; has a key twice, half of a character (a surrogate without the
            other), a whole number of more digits than can be read, or is nested too deeply. The text starts with
            ``place`` and names the field where one is known.
    """
    broken, line = "", line.rstrip(b"\r\n")
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        broken = f"not UTF-8 text ({error.reason} at byte {error.start + 1})"
        text = line.decode("utf-8-sig", "surrogateescape")
    try:
        value = json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise DataError(f"{place}: {broken or f'not valid JSON, {error.msg} at {_spot(error)}'}") from error
    except RecursionError as error:
        field = _key_of_deepest(text)
        raise DataError(f"{place}: {f'field {field!r}' if field else 'it'} is nested too deeply to be read") from error
    except _TwiceError as error:
        raise DataError(f"{place}: field {error.args[0]!r} stands there twice, in one object") from error
    except ValueError as error:
        long = (path for path, leaf in _leaves(json.loads(text, parse_int=_Digits)) if isinstance(leaf, _Digits))
        raise DataError(f"{place}: field {next(long)!r} holds a number of too many digits") from error
    if not isinstance(value, dict):
        raise DataError(f"{place}: {broken or f'must be a JSON object, got {type(value).__name__}'}")
    if broken or _HALF_ESCAPED.search(line):
        _refuse_halves(value, place, broken)
    return value


def _spot(error: json.JSONDecodeError) -> str:
    return f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}, column {error.colno}"


class _TwiceError(Exception):
    """An object has a key twice."""


class _Digits(str):
    """A whole number of more digits than Python reads."""

    def __new__(cls, digits: str) -> str:  # type: ignore[misc]
        return super().__new__(cls if len(digits) > sys.get_int_max_str_digits() else str, digits)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _TwiceError(next(key for key in keys if keys.count(key) > 1))
    return found


def _leaves(value: Any) -> Iterator[tuple[str, Any]]:
    """Whatever holds nothing else, and each key, with its path; without recursion."""
    waiting = [("", value)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, Mapping):
            for key, below in value.items():
                inner = f"{path}.{key}" if path else str(key)
                yield inner, key
                waiting.append((inner, below))
        elif isinstance(value, list):
            waiting += [(f"{path}[{i}]", below) for i, below in enumerate(value)]
        else:
            yield path, value


def _refuse_halves(value: Any, place: str, broken: str) -> None:
    for path, leaf in _leaves(value):
        half = _HALF.search(leaf) if isinstance(leaf, str) else None
        if half:
            shown = path.encode("ascii", "backslashreplace").decode()
            cut = f"holds half a character (\\u{ord(half.group()):04x}): an emoji was cut through"
            raise DataError(f"{place}: " + (f"{broken}, in field '{shown}'" if broken else f"field '{shown}' {cut}"))


def _key_of_deepest(text: str) -> str | None:
    """The outermost key under which brackets are nested most deeply."""
    depth, most, key, found = 0, 0, None, None
    tokens = list(_TOKEN.finditer(text))
    for token, after in zip(tokens, [*tokens[1:], None], strict=True):
        mark = token.group()
        if mark[0] == '"':
            key = mark[1:-1] if depth == 1 and after is not None and after.group() == ":" else key
        elif mark != ":":
            depth += 1 if mark in "[{" else -1
            most, found = (depth, key) if depth > most else (most, found)
    return found


def open_lines(path: str, file: Path) -> tuple[BinaryIO, str]:
    """The bytes of a file with one JSON object a line, to be read in any order, and what a message calls a line of it.

    Compressed files are unpacked. A ``.json`` file that is an array, or one object that has its rows in ``data``,
    ``rows`` or ``examples``, becomes one line a row; one that is another object is one row; else it has lines already.

    Raises:
        DataError: If it cannot be unpacked, or a ``.json`` file is none; names the line.
    """
    name = file.name.lower()
    kind = next((suffix for suffix in COMPRESSED if name.endswith(suffix)), "")
    handle = unpacked(path, file, COMPRESSED[kind]) if kind else file.open("rb")
    if not name.removesuffix(kind).endswith(".json"):
        return handle, "line"
    first = next((line for line in handle if line.strip()), b"")
    only = not any(line.strip() for line in handle)
    handle.seek(0)
    if first.lstrip(_MARK).lstrip()[:1] == b"{" and not only and _is_json(first):
        return handle, "line"
    with handle:
        text = handle.read().removeprefix(_MARK).decode("utf-8", "surrogateescape")
    lines = _spooled()
    lines.writelines(_lines(text, path) if text.strip() else ())
    lines.seek(0)
    return lines, "row"


def unpacked(path: str, file: Path, codec: str) -> BinaryIO:
    """What a compressed file holds.

    Raises:
        DataError: If it is cut off, or not compressed that way.
    """
    import pyarrow as pa

    whole = _spooled()
    try:
        with pa.OSFile(str(file)) as source, pa.CompressedInputStream(source, codec) as stream:
            while piece := stream.read(1 << 20):
                whole.write(piece)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be unpacked as {codec}: {str(error).splitlines()[0]}") from error
    whole.seek(0)
    return whole


def _spooled() -> BinaryIO:
    return cast(BinaryIO, SpooledTemporaryFile(max_size=IN_MEMORY))


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line.decode("utf-8-sig", "surrogateescape"), parse_int=str)
    except (json.JSONDecodeError, RecursionError):
        return False
    return True


def _lines(text: str, path: str) -> Iterator[bytes]:
    """Each row of an array or of one object, on a line of its own; the rows themselves are looked at when read."""
    start = _after_blanks(text, 0)
    if text[start] != "[":
        whole = json_object(text.encode("utf-8", "surrogateescape"), path)
        inside = [whole[key] for key in ROWS_INSIDE if isinstance(whole.get(key), list)]
        yield from (json.dumps(row).encode() + b"\n" for row in inside[0]) if inside else [_line(text)]
        return
    decoder, number = json.JSONDecoder(parse_int=str), 0
    at = _after_blanks(text, start + 1)
    mark = "]" if text[at : at + 1] == "]" else ","
    while mark == ",":
        number += 1
        try:
            _, end = decoder.raw_decode(text, at)
            yield _line(text[at:end])
            after = _after_blanks(text, end)
            mark = text[after : after + 1]
            if mark not in ("]", ","):
                raise json.JSONDecodeError("Expecting ',' or ']'", text, after)
            at = _after_blanks(text, after + 1)
        except json.JSONDecodeError as error:
            where = f"{path}, line {error.lineno}"
            raise DataError(
                f"{where}: not valid JSON, {error.msg} at column {error.colno} (in row {number})"
            ) from error
        except RecursionError as error:
            raise DataError(f"{path}, row {number}: is nested too deeply to be read") from error


def _after_blanks(text: str, start: int) -> int:
    found = _BLANK.match(text, start)
    return found.end() if found else start


def _line(text: str) -> bytes:
    """JSON on one line: line breaks stand between its tokens alone."""
    return text.replace("\r", " ").replace("\n", " ").encode("utf-8", "surrogateescape") + b"\n"
