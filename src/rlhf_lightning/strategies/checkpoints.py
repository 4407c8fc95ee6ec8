"""What a checkpoint holds and what a model wants, compared before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from torch.distributed.checkpoint import FileSystemReader, TensorStorageMetadata

from rlhf_lightning.errors import ConfigError

Shapes = Mapping[str, Sequence[int]]

_META = "meta.pt"
_COMPLETE = "lr_schedulers"
"""What Lightning saves of a run that can go on, in every format, and leaves out beside weights alone."""


def is_sharded(checkpoint: Path) -> bool:
    """Whether it is a folder that FSDP wrote, each rank its shards."""
    return (checkpoint / _META).is_file()


def meta_of(checkpoint: Path) -> Path:
    """The file in a folder of shards that holds all but weights and optimizer states."""
    return checkpoint / _META


def check_complete(checkpoint: Mapping[str, Any]) -> None:
    """Makes sure that training can go on from a checkpoint.

    Raises:
        ConfigError: If it holds weights alone.
    """
    if _COMPLETE not in checkpoint:
        raise ConfigError(
            "the checkpoint holds weights alone, so no training can go on from it: resume with last, or begin a "
            "new run from it (policy: {name: run, path: …/best.ckpt})"
        )


def check_shapes(wanted: Shapes, saved: Shapes) -> None:
    """Makes sure that a checkpoint is of this model.

    Args:
        wanted: Whole shapes by name of what the model would load.
        saved: The same of what the checkpoint holds.

    Raises:
        ConfigError: Naming the first weight that differs in shape, or else the first that is missing.
    """
    for name in sorted(set(wanted) & set(saved)):
        if tuple(wanted[name]) != tuple(saved[name]):
            raise ConfigError(
                f"the checkpoint is of another architecture: {name!r} has shape {tuple(saved[name])} there and "
                f"{tuple(wanted[name])} here. Resume with the configuration that the run was begun with"
            )
    if missing := sorted(set(wanted) - set(saved)):
        raise ConfigError(f"the checkpoint lacks {len(missing)} of the model's weights, first {missing[0]!r}")


def shapes(weights: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Whole shapes by name; of parameters that DeepSpeed has cut too."""
    return {name: tuple(getattr(weight, "ds_shape", weight.shape)) for name, weight in weights.items()}


def trained_shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Whole shapes by name of the parameters that train."""
    return shapes({name: p for name, p in module.named_parameters(remove_duplicate=False) if p.requires_grad})


def shard_shapes(checkpoint: Path, prefix: str) -> dict[str, tuple[int, ...]]:
    """Whole shapes by name of what lies in a folder of shards under a prefix."""
    held = FileSystemReader(checkpoint).read_metadata().state_dict_metadata
    tensors = {name: kept.size for name, kept in held.items() if isinstance(kept, TensorStorageMetadata)}
    return {name.removeprefix(prefix): tuple(size) for name, size in tensors.items() if name.startswith(prefix)}
