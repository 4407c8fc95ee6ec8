"""One row of a file, and its fields: each knows where it stands, so that an error can name file, row and field."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NoReturn

from rlhf_lightning.errors import DataError
from rlhf_lightning.registry import did_you_mean
from rlhf_lightning.types import Problem

ON_BAD_ROW = ("error", "skip")
"""What can be done about a malformed row."""

_STEP = re.compile(r"\[(-?[0-9]+)\]|([^.\[\]]+)")
_SEPARATOR = re.compile(r"[/\\]")
_SPEAKERS = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant"}


@dataclass(frozen=True)
class Row:
    """One row of a file.

    Attributes:
        path: The file, as the user gave it.
        number: Line of a JSONL file, row of any other, from 1.
        unit: ``"line"`` or ``"row"``.
        fields: The values by field name.
        name: The file's own name, that tells it from others read with it; the last part of ``path`` when not given.
        all_text: Whether the format has text alone (CSV), so that numbers are written out in it.
    """

    path: str
    number: int
    unit: str
    fields: Mapping[str, Any]
    name: str = ""
    all_text: bool = False

    @property
    def place(self) -> str:
        """File and line, for messages."""
        return f"{self.path}, {self.unit} {self.number}"

    @property
    def id(self) -> str:
        """A name for what stands in the row: its file and number."""
        return f"{self.name or _SEPARATOR.split(self.path)[-1]}:{self.number}"

    def text(self, field: str) -> str:
        """The text in ``field``, which may be a path (:meth:`Field.at`); numbers are written out.

        Raises:
            DataError: If the field is missing, or holds neither text nor a finite number; names the fields there are.
        """
        return Field.of(self).at(field).text("text or a number")


@dataclass(frozen=True)
class Field:
    """A value somewhere in a row.

    Attributes:
        row: The row.
        path: Where in it, as ``label.steps[2].rating``; "" for the row itself.
        value: What stands there; None where nothing does.
    """

    row: Row
    path: str
    value: Any

    @classmethod
    def of(cls, row: Row) -> Field:
        """The row itself."""
        return cls(row, "", row.fields)

    def __getitem__(self, name: str) -> Field:
        """The field of that name.

        Raises:
            DataError: If there is none; names those there are.
        """
        fields = self._mapping()
        path = f"{self.path}.{name}" if self.path else name
        if name not in fields:
            inner = [f"{key}.{below}" for key, value in fields.items() if isinstance(value, Mapping) for below in value]
            near = did_you_mean(name, [*fields, *inner]) or did_you_mean(name, [key.split(".")[-1] for key in inner])
            if self.row.all_text and len(fields) == 1 and any(mark in next(iter(fields)) for mark in ";\t|"):
                near = " The columns of a .csv file must be parted by commas, those of a .tsv by tabs."
            raise DataError(f"{self.row.place}: no field {path!r}.{near} Present: {', '.join(fields) or 'none'}")
        return Field(self.row, path, fields[name])

    def at(self, path: str) -> Field:
        """The field at ``reward_model.ground_truth``, ``turns[0]`` or ``messages[-1].content``.

        A field whose own name is the whole path comes first.

        Raises:
            DataError: If there is none; names those there are.
        """
        if isinstance(self.value, Mapping) and path in self.value:
            return self[path]
        found = self
        for index, name in _STEP.findall(path):
            if not index:
                found = found[name]
                continue
            items = list(found)
            if not -len(items) <= int(index) < len(items):
                found.refuse(f"a list that has a place [{index}]", f"{len(items)} items")
            found = items[int(index)]
        return found

    def get(self, name: str) -> Field | None:
        """The field of that name, None where it is missing or null."""
        return self[name] if self._mapping().get(name) is not None else None

    def __iter__(self) -> Iterator[Field]:
        """The items of a list."""
        if not isinstance(self.value, list):
            self.refuse("a list")
        return iter([Field(self.row, f"{self.path}[{i}]", item) for i, item in enumerate(self.value)])

    def text(self, expected: str = "text") -> str:
        """The text; finite numbers are written out."""
        value = self.value
        finite = isinstance(value, int | float | Decimal) and not isinstance(value, bool) and math.isfinite(value)
        if not isinstance(value, str) and not finite:
            self.refuse(expected)
        return str(value)

    def number(self, expected: str = "a number") -> float:
        """The finite number; the format's own text for one, where it has nothing but text."""
        value = self.value
        if self.row.all_text and isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                self.refuse(expected)
        if isinstance(value, bool) or not isinstance(value, int | float | Decimal) or not math.isfinite(value):
            self.refuse(expected)
        return float(value)

    def whole(self) -> int:
        """The whole number that is not negative."""
        value = self.value
        if self.row.all_text and isinstance(value, str) and value.isdecimal():
            return int(value)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            self.refuse("a whole number from 0 on")
        return int(value)

    def flag(self) -> bool:
        """The truth value."""
        if self.row.all_text and str(self.value).lower() in ("true", "false"):
            return str(self.value).lower() == "true"
        if not isinstance(self.value, bool):
            self.refuse("true or false")
        return bool(self.value)

    def label(self) -> float | None:
        """A probability of being right: a number from 0 to 1, true or false; None where it is null."""
        empty = self.value is None or (self.row.all_text and self.value == "")
        if empty or isinstance(self.value, bool):
            return None if empty else float(self.value)
        if self.row.all_text and str(self.value).lower() in ("true", "false"):
            return float(self.flag())
        number = self.number("a number from 0 to 1, or null")
        return number if 0 <= number <= 1 else self.refuse("a number from 0 to 1, or null")

    def turns(self) -> list[dict[str, str]]:
        """A conversation: a list of ``{role, content}``, not empty.

        Turns of ``{from, value}``, contents in parts that are all text, a single turn, and a table of ``role`` and
        ``content`` (as ``datasets`` gives some) are brought to that form.
        """
        turns = [self.value] if _turn(self.value) else self.value
        if isinstance(turns, Mapping) and turns and all(isinstance(column, list) for column in turns.values()):
            turns = [dict(zip(turns, row, strict=False)) for row in zip(*turns.values(), strict=False)]
        found = [_turn(turn) for turn in turns] if isinstance(turns, list) else []
        if not found or None in found:
            self.refuse("a list of {role, content}")
        return [turn for turn in found if turn is not None]

    def asked(self) -> str | list[dict[str, str]]:
        """What is asked: a text, or a conversation of which the last turn is to be answered."""
        if not isinstance(self.value, list | Mapping):
            return self.text("text or a list of {role, content}")
        turns = self.turns()
        if turns[-1]["role"] == "assistant":
            self.refuse("turns of which the last is to be answered", "the assistant's as the last one")
        return turns

    def answer(self) -> tuple[list[dict[str, str]], str]:
        """An answer, and the turns before it: none where it is a text, else a conversation that the assistant ends."""
        if not isinstance(self.value, list | Mapping):
            return [], self.text()
        *before, last = self.turns()
        if last["role"] != "assistant":
            self.refuse("turns of which the last is the assistant's")
        return before, last["content"]

    def refuse(self, expected: str, got: str | None = None) -> NoReturn:
        """Raises DataError with what was expected here, and what stands here."""
        simple = isinstance(self.value, str | int | float | None)
        shown = got or (repr(self.value) if simple else type(self.value).__name__)
        shown = shown if len(shown) <= 60 else shown[:60] + "…"
        raise DataError(f"{self.row.place}: field {self.path!r} must be {expected}, got {shown}")

    def _mapping(self) -> Mapping[str, Any]:
        if not isinstance(self.value, Mapping):
            self.refuse("an object")
        return self.value  # type: ignore[no-any-return]


def question_key(question: str) -> str:
    """The question whatever its white space: two problems with one key are the same."""
    return " ".join(question.split())


def _turn(turn: Any) -> dict[str, str] | None:
    """A turn as ``{role, content}``; None if it is none."""
    if not isinstance(turn, Mapping):
        return None
    speaker, role = turn.get("from"), turn.get("role")
    role = _SPEAKERS.get(speaker, speaker) if role is None and isinstance(speaker, str) else role
    content = turn.get("content") if turn.get("content") is not None else turn.get("value")
    if isinstance(content, list):
        parts = [_part(part) for part in content]
        content = None if None in parts else "".join(part or "" for part in parts)
    return {"role": role, "content": content} if isinstance(role, str) and isinstance(content, str) else None


def _part(part: Any) -> str | None:
    """The text of a part of a turn; None if it is a picture or the like."""
    if isinstance(part, Mapping) and part.get("type", "text") == "text":
        part = part.get("text") if part.get("text") is not None else part.get("value")
    return part if isinstance(part, str) else None


def question_number(problem: Problem) -> int:
    """A 63-bit number of the question, whatever its white space.

    A conversation (``metadata["messages"]``) counts with all its turns; one of a single user's turn is the same as that
    turn's text.

    Args:
        problem: What is asked.
    """
    text = problem.whole_question
    digest = hashlib.blake2b(question_key(text).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
