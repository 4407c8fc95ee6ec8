"""What a checkpoint holds and what a model wants, compared before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.models.checkpoints import shard_sizes

Shapes = Mapping[str, Sequence[int]]

_COMPLETE = "lr_schedulers"
"""What Lightning saves of a run that can go on, in every format, and leaves out beside weights alone."""


def is_complete(checkpoint: Mapping[str, Any]) -> bool:
    """Whether training can go on from a checkpoint."""
    return _COMPLETE in checkpoint


def check_complete(checkpoint: Mapping[str, Any]) -> None:
    """Makes sure that training can go on from a checkpoint.

    Raises:
        ConfigError: If it holds weights alone.
    """
    if not is_complete(checkpoint):
        raise ConfigError(
            "the checkpoint holds weights alone, so no training can go on from it: resume with last, or begin a "
            "new run from it (policy: {name: run, path: …/best.ckpt})"
        )


def check_identity(here: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Makes sure that a checkpoint is of this run: its models' sources, its seed.

    Raises:
        ConfigError: Naming what differs.
    """
    for name, own in here.items():
        if saved.get(name) != own:
            raise ConfigError(
                f"the checkpoint's {name} is {saved.get(name)!r}, but this run's is {own!r}: "
                "resume with the configuration that the run was begun with"
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


def shard_shapes(checkpoint: Path) -> dict[str, tuple[int, ...]]:
    """Whole shapes by name of what lies in a folder of FSDP's shards."""
    return {name: tuple(kept.size) for name, kept in shard_sizes(checkpoint).items()}


def zero_shapes(held: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Whole shapes by name of what a rank's model states of DeepSpeed's tell of; tied weights have each name."""
    own = {name: tuple(shape) for group in held["param_shapes"] for name, shape in group.items()}
    return own | {name: own[first] for name, first in held["shared_params"].items() if first in own}
