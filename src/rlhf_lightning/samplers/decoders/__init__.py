"""Decoders: how a model is run token by token. A new architecture's fast path is a new file here, or a plug-in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.registry import plugins, resolve
from rlhf_lightning.samplers.decoders._merge import mergeable
from rlhf_lightning.samplers.decoders.hf import HFDecoder
from rlhf_lightning.samplers.decoders.llama import LlamaDecoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from rlhf_lightning.protocols import Decoder

__all__ = ["HFDecoder", "LlamaDecoder", "choose_decoder"]

AUTO = "auto"


def choose_decoder(name: str, model: PreTrainedModel) -> Decoder:
    """A decoder for the model.

    Args:
        name: Of a plug-in, or ``auto``: the one registered under the model's ``model_type`` if it supports the
            model, else ``hf``.
        model: The policy, adapters included.

    Raises:
        UnknownPluginError: If there is none of that name.
        ConfigError: If the one asked for does not support the model.
    """
    if name == AUTO:
        own = model.config.model_type
        candidates = [resolve("decoder", own)] if own in plugins("decoder") else []
        chosen: type[Decoder] = next((cls for cls in candidates if _fits(cls, model)), HFDecoder)
        return chosen()
    cls: type[Decoder] = resolve("decoder", name)
    if not _fits(cls, model):
        raise ConfigError(
            f"decoder {name!r} does not support this {model.config.model_type} model; use 'hf', which supports all"
        )
    return cls()


def _fits(cls: type[Decoder], model: PreTrainedModel) -> bool:
    return cls is HFDecoder or (cls.supports(model.config) and mergeable(model))
