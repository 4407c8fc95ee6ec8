"""List the plug-ins of all kinds, or check one against its contract.

``rlhf plugins`` lists; ``rlhf plugins check mypkg:Thing`` runs the contract of its kind on a class.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from rlhf_lightning.errors import ConfigError, RLHFError


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("action", nargs="?", default="list", help="list (default) or check")
    parser.add_argument("target", nargs="?", help="for check: package.module:Class")
    parser.add_argument("--kind", help="list only this kind; for check: the kind, where the class does not tell")


def run(options: argparse.Namespace) -> int:
    """Lists, or checks."""
    from rlhf_lightning.errors import did_you_mean
    from rlhf_lightning.plugins import load_builtins

    load_builtins()
    if options.action not in ACTIONS:
        hint = did_you_mean(options.action, ACTIONS)
        raise ConfigError(f"rlhf plugins: unknown action {options.action!r}.{hint} Actions: {', '.join(ACTIONS)}")
    return ACTIONS[options.action](options)


def list_plugins(options: argparse.Namespace) -> int:
    """Prints the table; a plug-in that does not import has its error in place of its doc, and the exit code is 1."""
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    from rlhf_lightning.registry import KINDS, check_kind
    from rlhf_lightning.shown import show_table

    if options.kind:
        check_kind(options.kind)
    table = Table(Column("kind", no_wrap=True), Column("name", no_wrap=True), "class", "origin", "what it does")
    broken = 0
    for kind in [options.kind] if options.kind else KINDS:
        for row, fine in rows(kind):
            broken += not fine
            table.add_row(*(Text(cell, style="" if fine else "red") for cell in row))
    show_table(Console(), table)
    return 1 if broken else 0


def rows(kind: str) -> list[tuple[tuple[str, str, str, str, str], bool]]:
    """A row a plug-in of one kind, and whether it imports."""
    from rlhf_lightning.registry import plugins

    try:
        infos = list(plugins(kind).values())
    except RLHFError as error:
        return [((kind, "", "", "", str(error)), False)]
    found = []
    for info in infos:
        try:
            text, fine = info.doc, True
        except RLHFError as error:
            text, fine = str(error), False
        found.append(((kind, info.name, info.target, info.origin, text), fine))
    return found


def check(options: argparse.Namespace) -> int:
    """Runs the contract and prints each check's outcome; 0 when all hold, 1 otherwise."""
    from rich.console import Console

    from rlhf_lightning.testing import check_plugin, load_target

    if not options.target:
        raise ConfigError("rlhf plugins check: name a class, as package.module:Class")
    report = check_plugin(load_target(options.target), kind=options.kind)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    for result in report.results:
        console.print(
            f"{'ok  ' if result.passed else 'FAIL'}  {result.name}{'' if result.passed else f': {result.why}'}"
        )
    console.print(f"{report.target} is {'a sound' if report.passed else 'NOT a sound'} {report.kind}")
    return 0 if report.passed else 1


ACTIONS: dict[str, Callable[[argparse.Namespace], int]] = {"list": list_plugins, "check": check}
