"""The commands beside the trainer's: one module each, a new file is a new command.

A module's docstring's first line is its help. It has either ``main(words) -> int``, or ``configure(parser)`` and
``run(options) -> int``. The file ``label_steps.py`` is the command ``label-steps``.
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
    return sorted(m.name.replace("_", "-") for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def summaries() -> dict[str, str]:
    """One line of help a command, read from the files without importing them."""
    return {name: _first_line(Path(__path__[0]) / f"{_module(name)}.py") for name in names()}


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
    module = importlib.import_module(f"{__name__}.{_module(name)}")
    code: int
    if hasattr(module, "main"):
        code = module.main(words)
        return code
    parser = _Parser(prog=f"rlhf {name}", description=module.__doc__, allow_abbrev=False)
    module.configure(parser)
    code = module.run(parser.parse_args(words))
    return code


def _module(name: str) -> str:
    return name.replace("-", "_")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raises instead of ending the program: all of the user's errors leave by one door."""
        raise ConfigError(f"{self.prog}: {message} (see {self.prog} --help)")


def _first_line(file: Path) -> str:
    doc = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return doc.split("\n", 1)[0]
