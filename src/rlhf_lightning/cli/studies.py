"""``rlhf study run``: makes what is missing of a study, and draws its report."""

from __future__ import annotations

import fcntl
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from rlhf_lightning.callbacks.report import is_finished
from rlhf_lightning.cli.study_check import check_commands
from rlhf_lightning.errors import ConfigError, did_you_mean
from rlhf_lightning.study.pieces import Piece
from rlhf_lightning.study.report import StudyReport
from rlhf_lightning.study.state import plan_study, save_study

TAIL = 15
"""Last lines of a failed command's output that are shown."""


class StudyRun:
    """Makes the pieces of a study one after another, each by an ``rlhf`` command of its own, and draws the report.

    What is finished is not made again, and what was stopped goes on; parts that several others take (SFT models,
    samples, labels, reward models) are made once. Where a command fails, all that does not need it is still made.

    Args:
        axes: What is varied: by name a list of labels, or labels with the options that they add, by part.
        parts: The commands: by name ``command``, ``over`` (its axes), ``options``, ``gives`` (what of its folder others
            take), ``role`` (what the report reads: ``policy`` or ``best_of_n``), ``without`` (combinations left out).
            In texts ``{axis}`` is the label, ``{part}`` the result of the part's piece of the same labels, and
            ``{part[axis=label]}`` of another.
        folder: Where everything is written.
        only: Patterns such as ``policy/*seed-1``: only such pieces, and what they need.
        dry_run: Show the pieces and their commands, and make nothing.

    Raises:
        ConfigError: If something cannot be, before anything is made.
    """

    resumes = True

    def __init__(
        self,
        axes: dict[str, Any],
        parts: dict[str, Any],
        folder: str = "studies/mine",
        only: list[str] | None = None,
        dry_run: bool = False,
    ) -> None:
        self._given = axes, parts
        self.study, self.dry_run = plan_study(folder, axes, parts), dry_run
        self.chosen = _chosen(list(self.study.pieces), only)
        self.console = Console()

    def run(self) -> int:
        """Makes what is missing; 1 if something failed."""
        self.study.check()
        needed = self.study.needed(self.chosen)
        open_pieces = [piece for piece in needed if not self.study.is_made(piece)]
        check_commands(open_pieces, self.study.folder)
        if self.dry_run:
            self._say(self._overview(needed))
            return 0
        save_study(self.study, *self._given)
        failed = self._make(open_pieces)
        report = StudyReport(str(self.study.folder))
        if report.has_something():
            report.run()
        return 1 if failed else 0

    def _make(self, pieces: Sequence[Piece]) -> list[str]:
        failed: list[str] = []
        with _progress() as progress:
            bar = progress.add_task("", total=len(pieces))
            for piece in pieces:
                progress.update(bar, description=piece.name)
                missing = [name for name in piece.needs if name in failed]
                if missing:
                    self._say(f"left out: {piece.name} needs {missing[0]}")
                if missing or not self._made(piece):
                    failed.append(piece.name)
                progress.advance(bar)
        return failed

    def _made(self, piece: Piece) -> bool:
        command, log = piece.command(self.study.folder), self.study.log(piece)
        log.parent.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        with log.open("a", encoding="utf-8") as output:
            self._lock(output, piece)
            if self.study.is_made(piece):
                return True
            self.study.begin(piece)
            print("$ rlhf", shlex.join(command), file=output, flush=True)
            code = _run([sys.executable, "-m", "rlhf_lightning.cli", *command], output)
        seconds = time.monotonic() - start
        if code == 0 and _COMPLETE.get(piece.part.command, _always)(self.study.folder / piece.name):
            self.study.finish(piece, seconds)
            self._say(f"made: {piece.name} in {seconds:.0f} s")
            return True
        last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:]
        how = f"failed: {piece.name}, exit code {code}" if code else f"stopped before its end: {piece.name}"
        self._say("\n".join([f"{how}; what it said is in {log}", *last]))
        return False

    def _lock(self, output: IO[str], piece: Piece) -> None:
        """Until the file is closed, no other process makes the piece."""
        try:
            fcntl.flock(output, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._say(f"waiting: another process makes {piece.name}")
            fcntl.flock(output, fcntl.LOCK_EX)

    def _overview(self, pieces: Sequence[Piece]) -> str:
        lines = [f"{self.study.folder}: {len(pieces)} pieces"]
        for piece in pieces:
            state = "finished" if self.study.is_made(piece) else "begun" if self.study.state(piece) else "to make"
            lines += [f"{piece.name}: {state}", f"    rlhf {shlex.join(piece.command(self.study.folder))}"]
        return "\n".join(lines)

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def _always(folder: Path) -> bool:
    return True


_COMPLETE = {"fit": is_finished}
"""By command, whether exit code 0 was its end: a training run that is told to stop leaves with 0 too."""


def _chosen(names: Sequence[str], only: Sequence[str] | None) -> list[str]:
    if only is None:
        return list(names)
    for pattern in only:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(f"only: {pattern!r} matches no piece.{did_you_mean(pattern, names)}")
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in only)]


def _run(command: Sequence[str], output: Any) -> int:
    """The command's exit code; it is stopped with us, and given the time to leave what it can go on from."""
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            raise


@contextmanager
def _progress() -> Iterator[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    screen = Console(stderr=True)
    with Progress(*columns, console=screen, disable=not screen.is_terminal) as progress:
        yield progress
