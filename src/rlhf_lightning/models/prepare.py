"""Makes a loaded model ready for reinforcement learning."""

from __future__ import annotations

import copy
import logging
from typing import TYPE_CHECKING

import torch

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.models.layers import with_float32_head
from rlhf_lightning.models.lean import make_lean
from rlhf_lightning.models.lora import LoRA
from rlhf_lightning.models.repeatable import without_noise
from rlhf_lightning.models.rounding import round_once
from rlhf_lightning.models.scalar import scalar_model
from rlhf_lightning.models.way_choice import way_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from rlhf_lightning.protocols import ModelSource

_log = logging.getLogger(__name__)

SIXTEEN_BITS = {"bfloat16": torch.bfloat16, "float16": torch.float16}
"""Types in which a step of a usual learning rate is lost: a bfloat16 has 8 binary digits, so a weight of 0.02 moves by
6e-5 at a time or not at all."""


def trained_dtype(source: ModelSource, *, lora: LoRA | None, sixteen_bits: bool) -> str:
    """Type of a model's weights where it trains: the source's; float32 where all of them train and that has 16 bits.

    Args:
        source: Where the model comes from.
        lora: Its adapters, which are float32 at least whatever they stand on.
        sixteen_bits: Whether weights of 16 bits may train.
    """
    own = str(getattr(source, "dtype", None) or "float32")
    return "float32" if own in SIXTEEN_BITS and lora is None and not sixteen_bits else own


def load_to_train(source: ModelSource, *, lora: LoRA | None, sixteen_bits: bool) -> PreTrainedModel:
    """The source's model in :func:`trained_dtype`: read so, where the source says its type, else made so."""
    wanted = trained_dtype(source, lora=lora, sixteen_bits=sixteen_bits)
    if wanted != getattr(source, "dtype", wanted):
        source = copy.copy(source)
        source.dtype = wanted  # type: ignore[attr-defined]
    model = source.load()
    return model if lora or sixteen_bits else in_float32(model)


def in_float32(model: PreTrainedModel, *, trained_alone: bool = False) -> PreTrainedModel:
    """The model, what has 16 bits of it made float32 in place; ``trained_alone``: of the parameters that train."""
    buffers = () if trained_alone else model.buffers()
    for tensor in (*model.parameters(), *buffers):
        if tensor.dtype in SIXTEEN_BITS.values() and (tensor.requires_grad or not trained_alone):
            tensor.data = tensor.data.float()
    return model


def trainable(
    model: PreTrainedModel, *, lora: LoRA | None, gradient_checkpointing: bool, float32_logits: bool = False
) -> PreTrainedModel:
    """The model without noise, its adapters on if asked for, and activation checkpointing if asked for.

    Adapters are float32 at least. On CPU norms and MLPs run leaner (``models.lean``). A router learns from what its
    tokens' experts do to the loss; the auxiliary loss that balances experts is not part of any loss here.
    """
    make_lean(without_noise(without_router_logits(model)))
    way_of(model)
    if float32_logits:
        with_float32_head(model)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return round_once(in_float32(lora(model), trained_alone=True)) if lora else model  # type: ignore[return-value]


def trainable_scalar(model: PreTrainedModel, *, lora: LoRA | None, gradient_checkpointing: bool) -> PreTrainedModel:
    """As :func:`trainable`, with a scalar head: the model's own if it has one, else a new one that begins at 0.

    With adapters the head, too, is float32 at least.
    """
    headed = model if hasattr(model, "score") else scalar_model(model)
    made = trainable(headed, lora=None, gradient_checkpointing=gradient_checkpointing)
    return round_once(in_float32(lora.under_head(made), trained_alone=True)) if lora else made  # type: ignore[return-value]


def skeleton(config: PretrainedConfig) -> PreTrainedModel:
    """The model without weights, on the meta device: quick to make at any size, to be checked.

    Raises:
        ConfigError: If the configuration is of no causal language model.
    """
    from transformers import AutoModelForCausalLM

    remote = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if type(config) not in AutoModelForCausalLM._model_mapping and not remote:
        pair = " but an encoder-decoder" if config.is_encoder_decoder else ""
        raise ConfigError(
            f"model type {config.model_type} is no causal language model{pair}: a policy, a critic or a reward model "
            "starts from one that goes on with its prompt token by token (Llama, Qwen, Gemma, Mamba, ...)"
        )
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def frozen_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy that never trains."""
    return frozen(copy.deepcopy(model))


def frozen(model: PreTrainedModel, *, float32_logits: bool = False) -> PreTrainedModel:
    """The model, made to never train."""
    make_lean(without_noise(without_router_logits(model)))
    way_of(model)
    if float32_logits:
        with_float32_head(model)
    return model.requires_grad_(False).eval()


def without_router_logits(model: PreTrainedModel) -> PreTrainedModel:
    """Turns ``output_router_logits`` off, with a warning: nobody uses the router's auxiliary loss that it is for.

    It would be made in each forward, also of single tokens with a cache, for which it is not defined.
    """
    for config in {id(config): config for config in (model.config, model.config.get_text_config())}.values():
        if getattr(config, "output_router_logits", False):
            config.output_router_logits = False
            _log.warning(
                "%s: output_router_logits is true in its configuration, for the router's auxiliary loss; that loss is "
                "not part of any loss here, so it is false from now on",
                type(model).__name__,
            )
    return model
