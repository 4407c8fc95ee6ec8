"""Checkpoints on disk, files or folders of shards: written whole or not at all, named, removed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from lightning import Trainer

from rlhf_lightning import ranks
from rlhf_lightning.errors import RunFolderError

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
