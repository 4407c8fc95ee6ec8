"""A study's commands, looked at before any of them runs."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path

from rlhf_lightning.cli.main import run_words
from rlhf_lightning.errors import ConfigError, RLHFError
from rlhf_lightning.study.pieces import Piece


def check_commands(pieces: Sequence[Piece], folder: Path) -> None:
    """Has the commands resolve their configurations: of each part so many that every label of its axes is seen.

    What others have yet to make is not looked for; keys, names and types are.

    Args:
        pieces: Those to make.
        folder: The study's.

    Raises:
        ConfigError: Naming the first piece that could not run, and why.
    """
    for piece in _covering(pieces):
        printed = io.StringIO()
        try:
            with redirect_stdout(printed):
                run_words([*piece.command(folder), "--print_config"])
        except SystemExit as stop:
            if stop.code:
                raise
        except RLHFError as error:
            raise ConfigError(f"{piece.name}: {error}") from error
        if piece.part.role == "policy" and "HeldOutEval" not in printed.getvalue():
            raise ConfigError(f"{piece.name}: has the role policy, but no callback HeldOutEval measures it")


def _covering(pieces: Sequence[Piece]) -> Iterator[Piece]:
    """Those of which part or a label was not seen before."""
    seen: set[tuple[str, str, str]] = set()
    for piece in pieces:
        own = {(piece.part.name, axis, label) for axis, label in [*piece.at.items(), ("", "")]}
        if not own <= seen:
            seen |= own
            yield piece
