"""The folder of a run: refused when it would overwrite another, found again when a run goes on."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from rlhf_lightning.errors import RunFolderError, nearest
from rlhf_lightning.run_layout import CHECKPOINTS_FOLDER, CONFIG_FILE, newest_checkpoint


@dataclass(frozen=True)
class RunFolder:
    """``<root>/<name>``: configuration, checkpoints, metrics, samples and plots of one run.

    Attributes:
        root: Folder of all runs.
        name: This run's name; may have sub-folders.

    Raises:
        RunFolderError: If the name leads out of the root.
    """

    root: str
    name: str

    def __post_init__(self) -> None:
        name = Path(self.name)
        if name.is_absolute() or ".." in name.parts or not name.parts:
            raise RunFolderError(f"run.name: {self.name!r} must be a name inside run.root ({self.root})")

    @property
    def path(self) -> Path:
        """The folder."""
        return Path(self.root).expanduser() / self.name

    def open_new(self) -> Path:
        """Makes the folder.

        Raises:
            RunFolderError: If it holds anything already, or cannot be written.
        """
        if self.is_used():
            raise RunFolderError(
                f"run folder {self.path} exists already and is never overwritten. "
                "Go on with that run: --ckpt_path last. Start another: --run.name OTHER"
            )
        return self.make()

    def make(self) -> Path:
        """Makes the folder if it is not there, and tries to write in it.

        Raises:
            RunFolderError: If it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise RunFolderError(
                f"run folder {self.path} cannot be written: {error.strerror or error}. "
                "Choose another place with --run.root or --run.name"
            ) from error
        return self.path

    def is_used(self) -> bool:
        """Whether anything is in the folder, or a file is in its place."""
        try:
            return self.path.is_file() or (self.path.is_dir() and any(self.path.iterdir()))
        except OSError as error:
            raise RunFolderError(f"run folder {self.path} cannot be read: {error.strerror or error}") from error

    def is_begun(self) -> bool:
        """Whether a run was begun here and ended before its first checkpoint, so that going on is starting again."""
        return (self.path / CONFIG_FILE).is_file() and newest_checkpoint(self.path) is None

    def holds(self, checkpoint: str) -> bool:
        """Whether a checkpoint lies inside this folder."""
        return Path(checkpoint).resolve().is_relative_to(self.path.resolve())

    def last_checkpoint(self) -> Path:
        """The newest checkpoint: ``checkpoints/last.ckpt``, else the ``*.ckpt`` written last.

        Raises:
            RunFolderError: If there is none.
        """
        folder = self.path / CHECKPOINTS_FOLDER
        found = newest_checkpoint(self.path)
        if found is None:
            raise RunFolderError(
                f"--ckpt_path last: no checkpoint in {folder}; leave --ckpt_path out to start the run"
                f"{self._neighbours()}"
            )
        return found

    def numbered(self, name: str) -> Path:
        """The first of ``name``, ``name-2``, ``name-3``, … that does not exist in the folder."""
        count = 1
        while (path := self.path / (name if count == 1 else f"{name}-{count}")).exists():
            count += 1
        return path

    def _neighbours(self) -> str:
        root = Path(self.root).expanduser()
        runs = (
            [p.parent.name for p in root.glob(f"*/{CHECKPOINTS_FOLDER}") if any(p.glob("*.ckpt"))]
            if root.is_dir()
            else []
        )
        if not runs:
            return ""
        near = nearest(self.name, runs)
        return f" (runs with checkpoints: {', '.join(sorted(runs))}{f'; nearest: {near}' if near else ''})"


def existing_checkpoint(path: str) -> Path:
    """A checkpoint given by its path.

    Raises:
        RunFolderError: If it does not exist; names the nearest in the same folder.
    """
    file = Path(path).expanduser()
    if not file.exists():
        siblings = [p.name for p in file.parent.iterdir()] if file.parent.is_dir() else []
        near = nearest(file.name, siblings)
        hint = f" Did you mean {file.parent / near}?" if near else ""
        raise RunFolderError(f"--ckpt_path: {path} does not exist.{hint} 'last' takes the run's newest checkpoint")
    return file
