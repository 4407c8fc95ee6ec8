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
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, *, adapters: bool = False
) -> None:
    """Writes a Hugging Face folder, whole or not at all: safetensors and tokenizer.

    Args:
        model: A causal LM, with adapters or without. It stays as it is.
        tokenizer: Its tokenizer.
        folder: Where to; must not exist yet.
        adapters: Write the adapters alone, as peft reads them beside the model they were made for. Otherwise they are
            merged: the folder holds one ordinary model.

    Raises:
        ConfigError: If there are no adapters to write.
        RunFolderError: If the folder exists.
    """
    check_free(folder)
    if adapters and not hasattr(model, "peft_config"):
        raise ConfigError("the policy has no adapters (lora), so there are none to export: export the whole model")
    aside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    written = model if adapters else causal_lm(merged_copy(model))
    written.save_pretrained(aside)
    tokenizer.save_pretrained(aside)
    aside.rename(folder)


def check_free(folder: Path) -> None:
    """Refuses to write over what is there.

    Raises:
        RunFolderError: If the folder exists.
    """
    if folder.exists():
        raise RunFolderError(f"{folder} exists already: give another folder, or remove it")
