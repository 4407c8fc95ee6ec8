"""The ``rlhf`` command: finds the subcommand, and turns the user's errors into one line and exit code 2."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlhf_lightning import __version__
from rlhf_lightning.cli import commands
from rlhf_lightning.cli.quiet import quieten
from rlhf_lightning.errors import ConfigError, RLHFError

TRAINER_COMMANDS = {
    "fit": "Train: supervised or with reinforcement learning, as the configuration says.",
    "validate": "Measure on the held-out problems.",
    "test": "Measure on the test problems.",
    "predict": "Write responses to the prompts.",
}
DOUBTFUL = 3
"""Exit code of a ``fit`` that came to its end, but with a warning (``callbacks.RunHealth``)."""
TRACEBACK = "RLHF_TRACEBACK"
"""Environment variable: when set to 1, the user's errors are shown with their traceback."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one ``rlhf`` command.

    Args:
        argv: The command line without the program's name; ``sys.argv[1:]`` when not given.

    Returns:
        The exit code: 0, 2 for an error of the user's, 130 when interrupted from the keyboard, 143 when terminated; but
        0 for a ``fit`` that was, which has stopped where it can go on from. 3 for a ``fit`` that came to its end with
        more skipped updates or failed scores than allowed.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return run_words(words)
    except RLHFError as error:
        if os.environ.get(TRACEBACK) == "1":
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return _stopped(words, 128 + signal.SIGINT)
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):
            return _stopped(words, 128 + signal.SIGINT)
        raise


def run_words(words: list[str]) -> int:
    """As :func:`main`, but all that the user can mend is raised.

    Raises:
        RLHFError: Naming what is wrong.
    """
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return 0
    if words[0] in ("-V", "--version"):
        print(f"rlhf-lightning {__version__}")
        return 0
    known = [*TRAINER_COMMANDS, *commands.names()]
    if words[0] not in known:
        from rlhf_lightning.errors import did_you_mean

        hint = did_you_mean(words[0], known)
        raise ConfigError(f"unknown command {words[0]!r}.{hint} Commands: {', '.join(known)}")
    quieten()  # before the libraries are imported that look at its settings
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # for classes of one's own; last, so that no file there stands for a library
    if words[0] in TRAINER_COMMANDS:
        return _train(words)
    return commands.run(words[0], words[1:])


def _train(words: list[str]) -> int:
    if "lightning" not in sys.modules:  # else nothing would be gained
        from rlhf_lightning.cli.arguments import look_first

        look_first([word for word in words if word != "--no-plan"])
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    from rlhf_lightning import ranks
    from rlhf_lightning.callbacks import RunHealth
    from rlhf_lightning.cli.lightning import RLHFCLI
    from rlhf_lightning.plugins import load_builtins

    quieten()  # and again: Lightning sets its own level when it is imported
    load_builtins()
    try:
        with _stopping_at_once(SIGTERMException):
            done = RLHFCLI(words)
        callbacks = getattr(done.trainer, "callbacks", [])
        found = [callback for callback in callbacks if isinstance(callback, RunHealth) and callback.found]
        code = DOUBTFUL if found and words[0] == "fit" else 0
    except SIGTERMException:
        code = _stopped(words, 0 if words[0] == "fit" else 128 + signal.SIGTERM)
    ranks.end(code)
    return code


@contextmanager
def _stopping_at_once(reason: type[BaseException]) -> Iterator[None]:
    """Raises it at a SIGTERM, where nothing better listens: before the first rollout nothing is lost."""

    def stop(number: int, frame: Any) -> None:
        raise reason

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _stopped(words: list[str], code: int) -> int:
    again = shlex.join(["rlhf", *words, "--ckpt_path", "last"])
    resume = f" Go on from the last checkpoint with: {again}" if words[:1] == ["fit"] else ""
    print(f"stopped.{resume}", file=sys.stderr)
    return code


def _help() -> str:
    entries = {**TRAINER_COMMANDS, **commands.summaries()}
    lines = [f"  {name:<11} {text}" for name, text in entries.items()]
    return "\n".join(
        [
            f"rlhf {__version__}: RLHF you can understand, change and scale.",
            "",
            "usage: rlhf COMMAND [--config NAME] [--KEY=VALUE ...]",
            "",
            *lines,
            "",
            "NAME is a file, or a shipped configuration such as quickstart.yaml.",
            "KEY is a dotted configuration key: --trainer.max_epochs=20 --model.advantage=rloo --run.name=mine",
            "",
            "rlhf fit --config NAME --print_config   the full configuration, all defaults included",
            "rlhf COMMAND --help                     the options of a command",
            f"{TRACEBACK}=1 rlhf ...                 errors with their traceback",
        ]
    )
