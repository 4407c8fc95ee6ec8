"""Copies of a model to generate with: as it is, or whole where its weights are spread over ranks."""

from __future__ import annotations

import copy
from functools import reduce
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rlhf_lightning import ranks
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.models.layers import Float32Head, causal_lm, with_float32_head
from rlhf_lightning.models.prepare import skeleton
from rlhf_lightning.samplers.decoders._merge import base_layer, effective_weight, mergeable

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def is_spread(model: nn.Module) -> bool:
    """Whether a forward of the model brings weights of other ranks together: under FSDP 1 and 2, and ZeRO 3."""
    if ranks.world_size() == 1:
        return False
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

    wrapped = any(isinstance(module, FSDPModule | FullyShardedDataParallel) for module in model.modules())
    return wrapped or any(hasattr(parameter, "ds_id") for parameter in model.parameters())


def ordinary_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy that computes to the bit what the model does.

    Made outside of inference mode: torch takes another path through some products (whether it folds a batch into rows)
    for weights that were made inside, and rounds otherwise there.
    """
    with torch.inference_mode(False), torch.no_grad():
        return copy.deepcopy(model)


def whole_copy(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The model on this rank alone, adapters merged; to be made while its weights are together.

    Args:
        model: A causal LM, adapted or not.
        dtype: Of the copy; float32 in place of 16 bits where there are adapters, which those would round away.

    Raises:
        ConfigError: If an adapter is not plain LoRA, whose effect is an addition to the weight.
    """
    if not mergeable(model):
        raise ConfigError("adapters other than plain LoRA cannot be sampled from while the weights are sharded")
    live: Any = causal_lm(model)
    if live is not model:
        dtype = torch.promote_types(dtype, torch.float32)
    copied: Any = skeleton(live.config)
    for holder, own in [_cut(name) for name, _ in copied.named_parameters()]:
        weight = _parameter(_module(live, holder), own).detach().to(dtype, copy=True)
        copied.get_submodule(holder)._parameters[own] = nn.Parameter(weight, requires_grad=False)
    for holder, own in [_cut(name) for name, _ in copied.named_buffers()]:
        copied.get_submodule(holder)._buffers[own] = getattr(_module(live, holder), own).clone()
    copied.tie_weights()
    if isinstance(live.get_output_embeddings(), Float32Head):
        with_float32_head(copied)
    return copied.eval()  # type: ignore[no-any-return]


def _cut(name: str) -> tuple[str, str]:
    """A dotted name into the module's and its own."""
    holder, _, own = name.rpartition(".")
    return holder, own


def _module(root: nn.Module, path: str) -> Any:
    """The module at a path, through wrappers that hand their module's attributes on."""
    return reduce(getattr, filter(None, path.split(".")), root)


def _parameter(module: nn.Module, name: str) -> Tensor:
    found: Tensor = effective_weight(module) if name in {"weight"} else getattr(base_layer(module), name)
    return found
