"""Fields of a row, nested ones too, that say what was expected where they do not hold it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from rlhf_lightning.data.rows import Row
from rlhf_lightning.errors import DataError
from rlhf_lightning.registry import did_you_mean


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
            hint, listed = did_you_mean(name, fields), ", ".join(fields) or "none"
            raise DataError(f"{self.row.place}: no field {path!r}.{hint} Present: {listed}")
        return Field(self.row, path, fields[name])

    def get(self, name: str) -> Field | None:
        """The field of that name, None where it is missing or null."""
        return self[name] if self._mapping().get(name) is not None else None

    def __iter__(self) -> Iterator[Field]:
        """The items of a list."""
        if not isinstance(self.value, list):
            self.refuse("a list")
        return iter([Field(self.row, f"{self.path}[{i}]", item) for i, item in enumerate(self.value)])

    def text(self) -> str:
        """The text; numbers are written out."""
        if isinstance(self.value, bool) or not isinstance(self.value, str | int | float):
            self.refuse("text")
        return str(self.value)

    def number(self, expected: str = "a number") -> float:
        """The finite number."""
        if isinstance(self.value, bool) or not isinstance(self.value, int | float) or not math.isfinite(self.value):
            self.refuse(expected)
        return float(self.value)

    def whole(self) -> int:
        """The whole number that is not negative."""
        if isinstance(self.value, bool) or not isinstance(self.value, int) or self.value < 0:
            self.refuse("a whole number from 0 on")
        return int(self.value)

    def flag(self) -> bool:
        """The truth value."""
        if not isinstance(self.value, bool):
            self.refuse("true or false")
        return bool(self.value)

    def label(self) -> float | None:
        """A probability of being right: a number from 0 to 1, true or false; None where it is null."""
        if self.value is None or isinstance(self.value, bool):
            return None if self.value is None else float(self.value)
        number = self.number("a number from 0 to 1, or null")
        return number if 0 <= number <= 1 else self.refuse("a number from 0 to 1, or null")

    def turns(self) -> list[dict[str, str]]:
        """A conversation: a list of ``{role, content}``, not empty."""
        turns = self.value
        if not isinstance(turns, list) or not turns or not all(map(_is_turn, turns)):
            self.refuse("a list of {role, content}")
        return [{"role": turn["role"], "content": turn["content"]} for turn in turns]

    def refuse(self, expected: str) -> NoReturn:
        """Raises DataError with what was expected here, and what stands here."""
        shown = repr(self.value) if isinstance(self.value, str | int | float | None) else type(self.value).__name__
        shown = shown if len(shown) <= 60 else shown[:60] + "…"
        raise DataError(f"{self.row.place}: field {self.path!r} must be {expected}, got {shown}")

    def _mapping(self) -> Mapping[str, Any]:
        if not isinstance(self.value, Mapping):
            self.refuse("an object")
        return self.value  # type: ignore[no-any-return]


def _is_turn(turn: Any) -> bool:
    return isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
