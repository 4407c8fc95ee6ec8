"""A policy as a folder that other programs read: whole, or its adapters alone."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_lightning.errors import ConfigError, RunFolderError
from rlhf_lightning.models.lora import merged_copy
from rlhf_lightning.models.packed import causal_lm

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def export_policy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    adapters: bool = False,
    shard_size: str = "5GB",
) -> None:
    """Writes a Hugging Face folder, whole or not at all: safetensors and tokenizer.

    Args:
        model: A causal LM, with adapters or without. It stays as it is.
        tokenizer: Its tokenizer.
        folder: Where to; must not exist yet.
        adapters: Write the adapters alone, as peft reads them beside the model they were made for. Otherwise they are
            merged: the folder holds one ordinary model.
        shard_size: Most of the weights in one file; an index names the files where there are several.

    Raises:
        ConfigError: If there are no adapters to write.
        RunFolderError: If the folder exists.
    """
    check_free(folder)
    if adapters and not hasattr(model, "peft_config"):
        raise ConfigError("the policy has no adapters (lora), so there are none to export: export the whole model")
    _write(model if adapters else causal_lm(merged_copy(model)), tokenizer, folder, shard_size)


def export_scalar(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, *, shard_size: str = "5GB"
) -> None:
    """Writes a model with a scalar head (a critic, a reward model) as transformers' sequence classifier of one label.

    Args:
        model: With adapters or without, which are merged. It stays as it is.
        tokenizer: Its tokenizer.
        folder: Where to; must not exist yet.
        shard_size: Most of the weights in one file.

    Raises:
        RunFolderError: If the folder exists.
    """
    check_free(folder)
    merged = merged_copy(model)
    merged.config.architectures = [type(merged).__name__]
    _write(merged, tokenizer, folder, shard_size)


def _write(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, shard_size: str) -> None:
    """Aside, then renamed: whole or not at all."""
    aside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    model.save_pretrained(aside, max_shard_size=shard_size)
    tokenizer.save_pretrained(aside)
    aside.rename(folder)


def check_free(folder: Path) -> None:
    """Refuses to write over what is there.

    Raises:
        RunFolderError: If the folder exists.
    """
    if folder.exists():
        raise RunFolderError(f"{folder} exists already: give another folder, or remove it")
