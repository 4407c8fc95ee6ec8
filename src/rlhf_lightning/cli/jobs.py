"""Commands that are a class: its constructor's arguments are the options, ``run()`` does the work.

Options come from configuration files and the command line as for ``rlhf fit``: plug-ins in short form, types from the
signature, and whatever cannot be is refused before the class is made, with its place and the nearest valid choice.
A configuration says which command it is for: ``job: sample``.
"""

from __future__ import annotations

import shlex
import signal
import sys
import threading
from argparse import ArgumentError
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import yaml
from jsonargparse import ArgumentParser, Namespace, get_loader

from rlhf_lightning.cli.document import Document, Key, merge, plain, read
from rlhf_lightning.cli.expand import Expander, kind_of
from rlhf_lightning.cli.messages import explain, first_cause
from rlhf_lightning.cli.options import CONFIG, SWITCHES, Option, split_options
from rlhf_lightning.cli.signatures import check_arguments, classes_in, signature
from rlhf_lightning.configfiles import find_config
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.plugins import load_builtins
from rlhf_lightning.registry import KINDS

JOB = "job"
"""Key of a configuration that says which command it is for."""


class Job(Protocol):
    """What a command's class can do. ``resumes = True`` says that the same command again goes on where it was."""

    def run(self) -> int | None:
        """Does the work; returns the exit code, None for 0."""


class Terminated(KeyboardInterrupt):
    """The process was asked to end (SIGTERM): a job stops as for Ctrl-C."""


def run_job(cls: type[Job], words: Sequence[str], prog: str) -> int:
    """Makes the class from the command line, and runs it.

    Args:
        cls: Its constructor's typed and documented arguments are the options.
        words: The command line after the command's name.
        prog: The command, as ``rlhf sample``.

    Returns:
        The exit code: the job's own, 130 when interrupted from the keyboard, 143 when terminated.

    Raises:
        RLHFError: For all that the user can mend.
    """
    load_builtins()
    parser = _parser(cls, prog)
    options = list(split_options(words))
    if any(option.name in ("-h", "--help") for option in options):
        _print_help(parser)
        return 0
    for option in options:
        if option.key[-1] == "help" and len(option.key) > 1:
            parser.parse_args(_plugin_help(cls, option))  # prints, and ends the program
    command = prog.partition(" ")[2]
    document = job_document(cls, options, command)
    parsed = parse(parser, document)
    if any(option.name.startswith("--print_config") for option in options):
        print(f"{JOB}: {command}\n{parser.dump(parsed, skip_none=False)}", end="")
        return 0
    return _run(make(cls, parser, parsed), shlex.join([*prog.split(), *words]))


def job_document(cls: type, options: Sequence[Option], command: str) -> Document:
    """The configuration files with the command line's values on top, checked and with short forms expanded.

    Raises:
        ConfigError: For whatever can be told wrong without the parser.
    """
    document = read([find_config(option.config()) for option in options if option.name in CONFIG])
    job = document.values.pop(JOB, command)
    if job != command:
        raise ConfigError(f"{document.where((JOB,))}this configuration is for another command: rlhf {job}")
    for option in options:
        if option.name not in CONFIG and not SWITCHES.match(option.name):
            _lay(document, option, cls)
    document.values = Expander(document).arguments(cls, document.values, ())
    return document


def parse(parser: ArgumentParser, document: Document) -> Namespace:
    """The document's values, with defaults and types checked.

    Raises:
        ConfigError: Naming the key, where it was written, and what is wrong.
    """
    try:
        return parser.parse_object(document.values)
    except ArgumentError as error:
        sentence = explain(str(error), document)
        raise ConfigError(f"{parser.prog}: {sentence}" if sentence.startswith("missing") else sentence) from error


def make(cls: type, parser: ArgumentParser, parsed: Namespace) -> Any:
    """The object; a value that a constructor refuses is the user's to mend, any other failure is a bug."""
    try:
        return cls(**parser.instantiate(parsed))
    except ValueError as error:
        first = first_cause(error, parsed)
        if isinstance(first, ValueError):
            raise ConfigError(str(first)) from error
        raise first from error


def _parser(cls: type, prog: str) -> ArgumentParser:
    parser = ArgumentParser(prog=prog, exit_on_error=False, usage=f"{prog} [--config NAME] [--KEY=VALUE ...]")
    parser.add_class_arguments(cls, None, fail_untyped=False)
    return parser


def _print_help(parser: ArgumentParser) -> None:
    parser.add_argument("--config", help="Configuration file, or a shipped one's name; of several the last one wins.")
    parser.add_argument("--print_config", action="store_true", help="Print the full configuration, and do nothing.")
    parser.print_help()


def _plugin_help(cls: type, option: Option) -> list[str]:
    """``--task.help jsonl`` with the class's path in place of the plug-in's name."""
    key = option.key[:1]
    check_arguments(cls, key, f"command line: --{key[0]}: ")
    kind = kind_of(signature(cls).hints[key[0]], key[0], KINDS)
    if kind is None or not option.value:
        return list(option.words)
    return option.valued(Expander(Document()).plugin_path(kind, option.value, key))


def _lay(document: Document, option: Option, cls: type) -> None:
    """Lays an option's value over the document's."""
    if not option.name.startswith("--"):
        raise ConfigError(f"unexpected argument {option.name!r}: options are --key=value or --key value")
    key = option.key
    laid = (*key[:-1], f"{key[-1]}+") if option.name.endswith("+") else key
    check_arguments(cls, key[:1], f"command line: --{key[0]}: ")
    if option.value is None:
        raise ConfigError(f"command line: {option.name} needs a value")
    hint = signature(cls).hints[key[0]] if len(key) == 1 else None
    for below in [known for known in document.sources if known[: len(key)] == plain(key)]:
        del document.sources[below]
    document.sources[plain(key)] = "command line"
    document.values = merge(document.values, _nested(document.values, laid, _value(option.value, hint)))


def _nested(values: Any, key: Key, value: Any) -> Any:
    """``{a: {b: value}}`` for the key ``a.b``; arguments of what is given by class path belong under ``init_args``."""
    if not key:
        return value
    below = values.get(key[0]) if isinstance(values, dict) else None
    if isinstance(values, dict) and "class_path" in values and key[0] not in ("class_path", "init_args"):
        return {"init_args": _nested(values.get("init_args"), key, value)}
    return {key[0]: _nested(below, key[1:], value)}


def _value(text: str, hint: Any) -> Any:
    """What an option's text stands for: YAML, except where the argument is a text, or it is but prose with a colon."""
    if classes_in(hint) == [str] and text != "null":
        return text
    try:
        value = get_loader("yaml")(text)
    except yaml.YAMLError:
        return text
    return text if isinstance(value, dict | list) and text.lstrip()[:1] not in ("{", "[") else value


def _run(job: Any, command: str) -> int:
    try:
        with _terminable():
            return int(job.run() or 0)
    except KeyboardInterrupt as stop:
        again = f" Go on where it was with: {command}" if getattr(job, "resumes", False) else ""
        print(f"stopped.{again}", file=sys.stderr)
        return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)


@contextmanager
def _terminable() -> Iterator[None]:
    """Inside, SIGTERM raises :class:`Terminated`, so that files and processes are left in order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
