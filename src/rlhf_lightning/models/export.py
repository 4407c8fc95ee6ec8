"""A policy as a folder that other programs read: whole, or its adapters alone."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlhf_lightning.errors import ConfigError, RunFolderError
from rlhf_lightning.models.lora import merged_copy
from rlhf_lightning.models.packed import causal_lm
from rlhf_lightning.models.scalar import head_outputs, scalar_head

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

_log = logging.getLogger(__name__)


def export_policy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    adapters: bool = False,
    shard_size: str = "5GB",
    base: str = "",
    ends: Sequence[int] = (),
) -> None:
    """Writes a Hugging Face folder, whole or not at all: safetensors and tokenizer.

    Args:
        model: A causal LM, with adapters or without. It stays as it is.
        tokenizer: Its tokenizer.
        folder: Where to; must not exist yet.
        adapters: Write the adapters alone, as peft reads them beside the model they were made for. Otherwise they are
            merged: the folder holds one ordinary model, whose outputs are compared with the adapted one's.
        shard_size: Most of the weights in one file; an index names the files where there are several.
        base: Where the model came from that the adapters were made for: a folder, a repository, a source's name.
        ends: Tokens that end a response; they are added to those of the generation config.

    Raises:
        ConfigError: If there are no adapters to write, or merging them makes another model.
        RunFolderError: If the folder exists, or cannot be written.
    """
    check_free(folder)
    if not adapters:
        whole = causal_lm(_merged(model))
        if getattr(whole, "generation_config", None) is not None:
            whole.generation_config = sound(whole.generation_config, ends)
        write_whole_folder(folder, lambda aside: _save(whole, tokenizer, aside, shard_size))
        return
    if not hasattr(model, "peft_config"):
        raise ConfigError("the policy has no adapters (lora), so there are none to export: export the whole model")
    for config in model.peft_config.values():
        config.base_model_name_or_path = base or config.base_model_name_or_path
    write_whole_folder(folder, lambda aside: _save(model, tokenizer, aside, shard_size))


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
        ConfigError: If merging the adapters makes another model.
        RunFolderError: If the folder exists, or cannot be written.
    """
    check_free(folder)
    merged = merged_scalar(model)
    write_whole_folder(folder, lambda aside: _save(merged, tokenizer, aside, shard_size))


def merged_scalar(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of a model with a scalar head without adapters, whose scores are the model's.

    Raises:
        ConfigError: If they are not.
    """
    merged = _merged(model)
    merged.config.architectures = [type(merged).__name__]
    return merged


def _save(model: Any, tokenizer: PreTrainedTokenizerBase, folder: Path, shard_size: str) -> None:
    model.save_pretrained(folder, max_shard_size=shard_size)
    tokenizer.save_pretrained(folder)


def write_whole_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Has a folder written aside, then renamed: whole or not at all.

    Raises:
        RunFolderError: If it cannot be written.
    """
    aside = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        write(aside)
        if folder.exists():
            shutil.rmtree(folder)
        aside.rename(folder)
    except OSError as error:
        raise RunFolderError(f"{folder} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def rehearse(tokenizer: PreTrainedTokenizerBase, place: str = "") -> None:
    """Tries, before any training, what an export does at its end beside the weights.

    Args:
        tokenizer: It is written to a folder that is removed again.
        place: Folder or repository of the model, whose generation config is looked at.

    Raises:
        ConfigError: If the tokenizer cannot be written; names the cause.
    """
    from transformers import GenerationConfig

    with tempfile.TemporaryDirectory(prefix="rlhf-export-") as folder:
        try:
            tokenizer.save_pretrained(folder)
        except Exception as error:
            raise ConfigError(f"the tokenizer cannot be written, so no model could be exported: {error}") from error
    if place:
        try:
            sound(GenerationConfig.from_pretrained(place, local_files_only=True))
        except (OSError, ValueError):
            return  # there is none


def sound(config: GenerationConfig, ends: Sequence[int] = ()) -> GenerationConfig:
    """A generation config that transformers writes: without settings that contradict others, which are named.

    A temperature without sampling is such a setting; transformers reads it, and ignores it.

    Args:
        config: As it was read.
        ends: Tokens that end a response; those that it lacks are added.
    """
    given = config.to_diff_dict()
    kept: dict[str, Any] = {}
    dropped: dict[str, Any] = {}
    for name, value in sorted(given.items(), key=lambda item: item[0] not in _FIRST):
        if _is_sound(made := {**kept, name: value}):
            kept = made
        else:
            dropped[name] = value
    if dropped:
        named = ", ".join(f"{name}: {value}" for name, value in dropped.items())
        _log.warning("generation_config.json: %s contradicts its other settings and is left out of exports", named)
    own = kept.get("eos_token_id")
    known = [] if own is None else [own] if isinstance(own, int) else list(own)
    if more := [end for end in ends if end not in known]:
        kept["eos_token_id"] = [*known, *more]
    return type(config)(**kept)


_FIRST = ("do_sample", "num_beams", "use_cache")
"""Settings of a generation config that others depend on."""


def _is_sound(settings: dict[str, Any]) -> bool:
    from transformers import GenerationConfig

    try:
        GenerationConfig(**settings).validate(strict=True)
    except (ValueError, TypeError):
        return False
    return True


@torch.no_grad()
def _merged(model: PreTrainedModel) -> PreTrainedModel:
    """A copy with its adapters merged, after a look whether it is the same model once it was written and read."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    merged = merged_copy(model)
    if not any(isinstance(layer, BaseTunerLayer) for layer in model.modules()):
        return merged
    inner: Any = causal_lm(merged)
    inner.tie_weights()  # as reading does
    vocabulary = int(inner.get_input_embeddings().weight.shape[0])
    tokens = torch.arange(24).view(2, 12) * 7919 % vocabulary
    mode = model.training
    outputs = [_outputs(one.eval(), tokens.to(one.device)).float().cpu() for one in (model, merged)]  # type: ignore[arg-type]
    model.train(mode)
    difference = float((outputs[0] - outputs[1]).abs().mean() / outputs[0].abs().mean().clamp(min=1.0))
    if not difference <= max(1e-3, 16 * torch.finfo(model.dtype).eps):
        raise ConfigError(
            "the adapters cannot be merged: the merged model's outputs differ from the adapted one's by "
            f"{difference:.3g} on average. Export the adapters alone (--adapters)"
        )
    return merged


def _outputs(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Log-probs of all tokens; the scores of every place of a model with a scalar head, whose type may be another."""
    inner: Any = causal_lm(model)
    if inner.get_output_embeddings() is None:
        return head_outputs(scalar_head(inner), inner.base_model(input_ids=tokens, use_cache=False).last_hidden_state)
    logits: Tensor = inner(input_ids=tokens, use_cache=False).logits
    return logits.float().log_softmax(-1)


def check_free(folder: Path) -> None:
    """Refuses to write over what is there.

    Raises:
        RunFolderError: If the folder exists.
    """
    if folder.exists():
        raise RunFolderError(f"{folder} exists already: give another folder, or remove it")
