"""What a vLLM engine must be told of a policy."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.samplers._vocabulary import vocabulary_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def plain_config(model: Any) -> PretrainedConfig:
    """The architecture, also of a model with adapters."""
    config: PretrainedConfig = (model.get_base_model() if hasattr(model, "get_base_model") else model).config
    return config


def with_class_name(model: Any) -> PretrainedConfig:
    """The configuration as it would be saved with the model: it says by which class it is computed."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    config: PretrainedConfig = copy.deepcopy(inner.config)
    config.architectures = [type(inner).__name__]
    return config


def adapter_rank(model: Any) -> int:
    """The largest rank of a policy's adapters.

    Raises:
        ConfigError: If it has none.
    """
    if not hasattr(model, "peft_config"):
        raise ConfigError("sampler vllm: lora: adapters, but the policy has none (set lora of the module, or merged)")
    return max(int(config.r) for config in model.peft_config.values())


def vocabulary_in(folder: str) -> dict[str, Any]:
    """The vocabulary of a model folder.

    Raises:
        ConfigError: If it is none.
    """
    from transformers import AutoConfig, AutoTokenizer

    path = Path(folder).expanduser()
    if not (path / "config.json").is_file():
        raise ConfigError(f"sampler vllm: model: {folder} is no model folder (no config.json)")
    return vocabulary_of(AutoTokenizer.from_pretrained(path), AutoConfig.from_pretrained(path)).plain()
