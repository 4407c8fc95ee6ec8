"""The commands beside the trainer's: one module each, with ``configure(parser)`` and ``run(options) -> int``.

A new file in this folder is a new command; its docstring's first line is its help.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import pkgutil
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from rlhf_lightning.errors import ConfigError


def names() -> list[str]:
    """Names of the commands, found without importing them."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def summaries() -> dict[str, str]:
    """One line of help a command, read from the files without importing them."""
    return {name: _first_line(Path(__path__[0]) / f"{name}.py") for name in names()}


def run(name: str, words: Sequence[str]) -> int:
    """Runs a command.

    Args:
        name: One of :func:`names`.
        words: Its arguments.

    Returns:
        Its exit code.

    Raises:
        RLHFError: For all that the user can mend.
    """
    module = importlib.import_module(f"{__name__}.{name}")
    parser = _Parser(prog=f"rlhf {name}", description=module.__doc__, allow_abbrev=False)
    module.configure(parser)
    code: int = module.run(parser.parse_args(words))
    return code


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raises instead of ending the program: all of the user's errors leave by one door."""
        raise ConfigError(f"{self.prog}: {message} (see {self.prog} --help)")


def _first_line(file: Path) -> str:
    doc = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return doc.split("\n", 1)[0]
