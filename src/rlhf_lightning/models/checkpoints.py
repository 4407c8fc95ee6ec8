"""Checkpoints read by one process, whichever strategy wrote them: a file, FSDP's folder of shards, or DeepSpeed's.

Folders are read by the libraries that wrote them, which unpickle what describes the shards: read those of runs that
you trust. Files, and all else in folders, are read as plain tensors and values.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor

from rlhf_lightning.errors import ConfigError

META = "meta.pt"
"""In a folder of FSDP's shards: all but weights and optimizer states."""

TAG = "checkpoint"
"""The folder in a folder of DeepSpeed's that holds the parts."""

OPTIMIZER = "optimizer_"
"""What Lightning's strategies put before an optimizer's number."""

_PREFIXES = ("state_dict.", "model.")
"""What Lightning's strategies for FSDP 2 and FSDP 1 put before names."""


def read_checkpoint(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint holds beside optimizer states: all weights, whole, by name, under ``state_dict``.

    Raises:
        ConfigError: If it is a folder that no strategy of ours wrote, or DeepSpeed is needed and not installed.
    """
    if is_sharded(checkpoint):
        return {**read_plain(checkpoint / META), "state_dict": _of_shards(checkpoint)}
    if parts := zero_parts(checkpoint):
        return {**read_plain(parts[0]), "state_dict": _of_zero(checkpoint)}
    if checkpoint.is_dir():
        raise ConfigError(f"{checkpoint} is a folder, but neither FSDP's shards ({META}) nor DeepSpeed's ({TAG}/)")
    return read_plain(checkpoint)


def read_training(checkpoint: Path) -> dict[str, Any]:
    """All that a folder of FSDP's shards holds, as a file would; ``optimizer_states`` are by the parameters' names."""
    from lightning.fabric.utilities.load import _load_distributed_checkpoint

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # as it is meant to be
        held = _load_distributed_checkpoint(checkpoint)
    weights = next(held.pop(prefix[:-1]) for prefix in _PREFIXES if prefix[:-1] in held)
    states = [held.pop(name) for name in sorted(held) if name.startswith(OPTIMIZER)]
    return {**held, "state_dict": weights} | ({"optimizer_states": states} if states else {})


def is_sharded(checkpoint: Path) -> bool:
    """Whether it is a folder that FSDP wrote, each rank its shards."""
    return (checkpoint / META).is_file()


def zero_parts(checkpoint: Path) -> list[Path]:
    """The files of model states in a folder that DeepSpeed wrote, by rank; none if it is no such folder."""
    return sorted((checkpoint / TAG).glob("*_model_states.pt"))


def read_plain(file: Path) -> dict[str, Any]:
    """A file of tensors and plain values; tensors are brought to memory when they are used."""
    return torch.load(file, map_location="cpu", mmap=True, weights_only=True)  # type: ignore[no-any-return]


def shard_sizes(checkpoint: Path) -> dict[str, dcp.TensorStorageMetadata]:
    """What lies in a folder of FSDP's shards, by the name of the weight."""
    held = dcp.FileSystemReader(checkpoint).read_metadata().state_dict_metadata
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in held.items()
        for prefix in _PREFIXES
        if name.startswith(prefix) and isinstance(tensor, dcp.TensorStorageMetadata)
    }


def weights_prefix(checkpoint: Path) -> str:
    """What stands before the names of weights in a folder of FSDP's shards."""
    names = dcp.FileSystemReader(checkpoint).read_metadata().state_dict_metadata
    return next(prefix for prefix in _PREFIXES if any(name.startswith(prefix) for name in names))


def _of_shards(checkpoint: Path) -> dict[str, Tensor]:
    held, prefix = shard_sizes(checkpoint), weights_prefix(checkpoint)
    whole = {name: torch.empty(kept.size, dtype=kept.properties.dtype) for name, kept in held.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # as it is meant to be
        dcp.load({f"{prefix}{name}": tensor for name, tensor in whole.items()}, checkpoint_id=checkpoint, no_dist=True)
    return whole


def _of_zero(checkpoint: Path) -> dict[str, Tensor]:
    if find_spec("deepspeed") is None:
        raise ConfigError(
            f"{checkpoint} was written by DeepSpeed, which reads it too: pip install 'rlhf-lightning[deepspeed]'"
        )
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        read = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint), tag=TAG, exclude_frozen_parameters=True)
    return {name: tensor.detach() for name, tensor in read.items()}
