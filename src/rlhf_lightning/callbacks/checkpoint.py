"""What a run keeps of its model: checkpoints, whole or not at all and the last one always known, and the export."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint

from rlhf_lightning import ranks
from rlhf_lightning.callbacks.loggers import run_dir_of
from rlhf_lightning.errors import ConfigError, RunFolderError
from rlhf_lightning.models.export import write_whole_folder
from rlhf_lightning.run_layout import CHECKPOINTS_FOLDER, REWARD_MODEL_FOLDER

_OF_WRITING = ("PytorchStreamWriter", "inline_container")
"""What PyTorch's errors name where a write has failed; it keeps no OSError."""


def write_checkpoint(trainer: Trainer, target: Path, *, resumable: bool) -> None:
    """Writes aside and renames, so a kill at any moment leaves what was there before. All ranks call it.

    Args:
        trainer: Its strategy says whether a checkpoint is a file or a folder.
        target: The checkpoint.
        resumable: Also keep the optimizer and the loops, not the weights alone.

    Raises:
        RunFolderError: If it cannot be written, the disk being full for example. What was there before stays.
    """
    aside = target.with_name(f".{target.name}.partial")
    if trainer.is_global_zero:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove(aside)
    trainer.strategy.barrier("aside is free")
    checkpoint = trainer._checkpoint_connector.dump_checkpoint(not resumable)
    error = _error_of(partial(trainer.strategy.save_checkpoint, checkpoint, aside))
    if reason := _reason_of_any(trainer, error):
        if trainer.is_global_zero:
            remove(aside)
        raise _unwritten(target, reason) from error
    if trainer.is_global_zero:
        _put(aside, target)
    trainer.strategy.barrier("checkpoint is there")


def name_also(checkpoint: Path, name: Path) -> None:
    """Gives a checkpoint a second name in its folder; what had that name before keeps its others, if it has any.

    A file's is a link of its own, which outlives the first name; a folder's is a relative symbolic link.
    """
    aside = name.with_name(f".{name.name}.partial")
    remove(aside)
    own = checkpoint.resolve()
    if own.is_dir():
        aside.symlink_to(own.name, target_is_directory=True)
    else:
        os.link(own, aside)
    aside.replace(name)


def named(folder: Path) -> set[Path]:
    """The checkpoints in a folder that have a second name there, where that is a symbolic link."""
    return {path.resolve() for path in folder.glob("*.ckpt") if path.is_symlink()}


def remove(checkpoint: Path) -> None:
    """Removes a file, a folder or a second name, if there is one."""
    if checkpoint.is_dir() and not checkpoint.is_symlink():
        shutil.rmtree(checkpoint)
    else:
        checkpoint.unlink(missing_ok=True)


def _put(aside: Path, target: Path) -> None:
    """A file takes another's place at once; a folder can only be renamed to where nothing is."""
    if not target.exists() or (target.is_file() and aside.is_file()):
        aside.replace(target)
        return
    old = target.with_name(f".{target.name}.old")
    remove(old)
    target.rename(old)
    aside.rename(target)
    remove(old)


def _error_of(write: Callable[[], None]) -> BaseException | None:
    """The system's refusal to write, if there is one; other errors go on."""
    try:
        write()
    except BaseException as error:
        if _why(error) is None:
            raise
        return error
    return None


def _reason_of_any(trainer: Trainer, error: BaseException | None) -> str | None:
    """What the system said on one of the ranks, so that all of them end with it; also waits until all have written.

    Where the others wait for this one inside the library that writes, they cannot be told: this one ends, and is named.
    """
    own = None if error is None else _why(error)
    sharding = getattr(trainer.lightning_module, "sharding", None)
    if own is not None and not getattr(sharding, "tells_of_failures", True):
        return own
    return next((reason for reason in ranks.gathered(own) if reason), None)


def _why(error: BaseException) -> str | None:
    """What the system said of a write that failed; None if the error is another one."""
    for cause in _causes(error):
        if isinstance(cause, OSError):
            return cause.strerror or str(cause)
        if isinstance(cause, RuntimeError) and any(name in str(cause) for name in _OF_WRITING):
            return str(cause).splitlines()[0]
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it came of, also on other ranks, as distributed checkpoints tell it."""
    while error is not None:
        yield error
        yield from (failure[0] for failure in getattr(error, "failures", {}).values())
        error = error.__cause__ or error.__context__


def _unwritten(target: Path, reason: str) -> RunFolderError:
    free, last = shutil.disk_usage(target.parent).free / 2**20, target.with_name("last.ckpt")
    needed = f", the last one has {_size(last) / 2**20:,.1f} MiB" if last.exists() else ""
    return RunFolderError(
        f"checkpoint {target} cannot be written: {reason} ({free:,.1f} MiB free there{needed}). The one before it is "
        "whole: make room, then go on with --ckpt_path last, or keep fewer checkpoints (RolloutCheckpoint: keep)"
    )


def _size(checkpoint: Path) -> int:
    files = checkpoint.rglob("*") if checkpoint.is_dir() else (checkpoint,)
    return sum(file.stat().st_size for file in files if file.is_file())


class RolloutCheckpoint(Checkpoint):
    """Saves after every ``every``-th epoch (a rollout, for policies), and after the one that a run ends with.

    A checkpoint is written aside and renamed, so a kill at any moment leaves the previous one whole.
    ``last.ckpt`` always names the newest. What happened after it is repeated on resume, to the same numbers. Where the
    strategy writes shards, a checkpoint is a folder.

    Args:
        folder: Where checkpoints go; ``checkpoints`` in the run's folder when not given.
        every: Epochs between two checkpoints.
        keep: How many are kept, the newest first; 0 keeps all.
    """

    def __init__(self, folder: str | Path | None = None, every: int = 1, keep: int = 2) -> None:
        if every < 1 or keep < 0:
            raise ConfigError(f"RolloutCheckpoint: every ({every}) must be at least 1 and keep ({keep}) at least 0")
        self.every, self.keep = every, keep
        self.folder = Path(CHECKPOINTS_FOLDER if folder is None else folder)
        self._in_run_folder = folder is None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Finds the run's folder, where no other was given."""
        if self._in_run_folder:
            self.folder = run_dir_of(trainer) / CHECKPOINTS_FOLDER

    @property
    def last(self) -> Path:
        """The newest checkpoint."""
        return self.folder / "last.ckpt"

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves at the edge."""
        done = trainer.current_epoch + 1
        ends = done == trainer.max_epochs or trainer.should_stop or trainer.received_sigterm
        if done % self.every == 0 or ends:
            self.save(trainer, done)

    def save(self, trainer: Trainer, done: int) -> None:
        """Writes the checkpoint, moves ``last.ckpt`` on, and only then removes what is too old. All ranks call it."""
        target = self.after(done)
        write_checkpoint(trainer, target, resumable=True)  # the optimizer and the cursor too
        if trainer.is_global_zero:
            name_also(target, self.last)
            self._remove_old()

    def after(self, done: int) -> Path:
        """The checkpoint after so many epochs, if it was saved and is still kept."""
        return self.folder / f"rollout-{done:06d}.ckpt"

    def _remove_old(self) -> None:
        saved, in_use = sorted(self.folder.glob("rollout-*.ckpt")), named(self.folder)
        for path in saved[: -self.keep] if self.keep else []:
            if path.resolve() not in in_use:
                remove(path)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the folder is the state."""
        return {}


@runtime_checkable
class ExportsRewardModel(Protocol):
    """A module that trains a reward model."""

    def export_reward_model(self, folder: Path) -> None:
        """Writes it to a folder, whole or not at all. All ranks call it, and the first one writes."""


class RewardModelExport(Callback):
    """Writes ``<run_dir>/reward_model/`` when a fit ends; does nothing for modules that train no reward model.

    Args:
        run_dir: The run's folder; that of the run's CSV logger when not given.
    """

    def __init__(self, run_dir: str | Path | None = None) -> None:
        self.run_dir = run_dir

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Before any weights are loaded, tries whether the folder can be written at the end.

        Raises:
            RunFolderError: If not.
        """
        if stage == "fit" and isinstance(pl_module, ExportsRewardModel) and trainer.is_global_zero:
            tried = run_dir_of(trainer, self.run_dir) / f".{REWARD_MODEL_FOLDER}.tried"
            write_whole_folder(tried, lambda aside: (aside / "tried").touch())
            shutil.rmtree(tried)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the finished model."""
        if isinstance(pl_module, ExportsRewardModel):
            run_dir = run_dir_of(trainer, self.run_dir)
            run_dir.mkdir(parents=True, exist_ok=True)
            pl_module.export_reward_model(run_dir / REWARD_MODEL_FOLDER)
