"""A file that a job appends to as results come, and takes up again after a kill at any moment."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rlhf_lightning.errors import RunFolderError
from rlhf_lightning.runs.files import append, write_whole


class Output:
    """JSON lines, and beside them ``<name>.meta.json`` with the settings that made them.

    Args:
        path: The file.
        settings: What every line depends on. A file that others made is never added to.
    """

    def __init__(self, path: str, settings: Mapping[str, Any]) -> None:
        self.path = Path(path).expanduser()
        self.settings = json.loads(json.dumps(settings, default=str))

    @property
    def meta_path(self) -> Path:
        """Where the settings stand."""
        return self.path.with_name(f"{self.path.name}.meta.json")

    def open(self) -> list[dict[str, Any]]:
        """What was written so far; a last line that a kill cut off is taken away.

        Raises:
            RunFolderError: If the file was made with other settings (names the first that differs), is not one of
                ours, or cannot be read or written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            written = self._whole_lines() if self.path.exists() else []
            if written:
                self._check_settings()
            else:
                write_whole(self.meta_path, json.dumps(self.settings, indent=1, ensure_ascii=False) + "\n")
            append(self.path, "")
        except OSError as error:
            raise RunFolderError(f"{self.path} cannot be written: {error.strerror or error}") from error
        return written

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Appends rows, handed to the operating system at once."""
        append(self.path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def keep(self, lines: int) -> None:
        """Takes away all but the first so many lines."""
        kept = b"".join(self.path.read_bytes().splitlines(keepends=True)[:lines])
        with self.path.open("r+b") as file:
            file.truncate(len(kept))

    def _whole_lines(self) -> list[dict[str, Any]]:
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
        return [self._parsed(number, line) for number, line in enumerate(whole.split(b"\n")[:-1], start=1)]

    def _parsed(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            row = json.loads(line)
        except ValueError as error:
            raise RunFolderError(f"{self.path}, line {number}: not JSON, so nothing is added to it: {error}") from error
        if not isinstance(row, dict):
            raise RunFolderError(f"{self.path}, line {number}: not a JSON object, so nothing is added to it")
        return row

    def _check_settings(self) -> None:
        if not self.meta_path.is_file():
            raise RunFolderError(
                f"{self.path} exists already, and without {self.meta_path.name} there is no telling what made it. "
                "Write elsewhere: --out OTHER"
            )
        before = json.loads(self.meta_path.read_text(encoding="utf-8"))
        for key in [*self.settings, *before]:
            old, new = before.get(key), self.settings.get(key)
            if old != new:
                raise RunFolderError(
                    f"{self.path} was made with {key} {_shown(old)}, now it is {_shown(new)}. "
                    "Set it as it was to go on, or write elsewhere: --out OTHER"
                )


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
