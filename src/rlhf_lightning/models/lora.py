"""Low-rank adapters: what trains is small, and the reference is the policy with its adapters off."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rlhf_lightning.errors import ConfigError, ModelSourceError
from rlhf_lightning.models.scalar import scalar_head
from rlhf_lightning.registry import did_you_mean

if TYPE_CHECKING:
    from pathlib import Path

    from peft import LoraConfig
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class LoRA:
    """Low-rank adaptation (Hu et al. 2021), through peft.

    Where the embedding is adapted and the LM head shares its weight, the head gets a copy of its own: the adapters act
    on the embedding alone, in training, in sampling and in what is exported.

    Attributes:
        rank: r.
        alpha: The update is scaled by alpha/r.
        target_modules: Names of the layers adapted, one regular expression for whole names, or ``all-linear``: all but
            the head, what routes tokens to experts (a small step there sends tokens elsewhere; name it to adapt it),
            and what peft adapts in no state-space model (the ``out_proj`` of Mamba, Falcon-H1, Nemotron-H).
        seed: Of the adapters' initial weights.

    Raises:
        ConfigError: If a value is out of range.
    """

    rank: int = 16
    alpha: int = 32
    target_modules: str | list[str] = "all-linear"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in {"rank": self.rank, "alpha": self.alpha}.items():
            if value < 1:
                raise ConfigError(f"lora: {name} must be at least 1, got {value}")
        if not self.target_modules:
            raise ConfigError("lora: target_modules names no layer; all-linear are all linear ones but the head")

    def __call__(self, model: PreTrainedModel) -> PreTrainedModel:
        """Wraps the model; only its adapters then train. They start as no change at all (B = 0)."""
        from peft import get_peft_model

        with self._seeded(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`")  # the two are untied here
            adapted = get_peft_model(model, self._config(model, task_type="CAUSAL_LM"))
        return untied(adapted)  # type: ignore[arg-type]

    def check(self, skeleton: PreTrainedModel) -> None:
        """Makes sure, without weights, that the model has the layers that are to be adapted.

        Args:
            skeleton: The causal LM on the meta device; it is used up.

        Raises:
            ConfigError: If a name is of no layer (with the nearest), or of the LM head, or peft cannot adapt it.
        """
        layers = [name for name, _ in skeleton.named_modules() if name]
        named = [self.target_modules] if isinstance(self.target_modules, str) else self.target_modules
        head = skeleton.get_output_embeddings()  # type: ignore[no-untyped-call]
        able = [name for name, layer in skeleton.named_modules() if _has_weight(layer) and layer is not head]
        leaves = dict.fromkeys(name.rpartition(".")[2] for name in able)
        for target in named if named != ["all-linear"] else ():
            if not any(self._means(name, target) for name in layers):
                how = "matched as a whole by" if isinstance(self.target_modules, str) else "called"
                raise ConfigError(
                    f"lora: target_modules: no layer is {how} {target!r}.{did_you_mean(target, leaves)} "
                    f"Give all-linear, or a list of: {', '.join(leaves)}"
                )
        try:
            adapted: Any = self(skeleton)
        except ValueError as error:
            raise ConfigError(f"lora: target_modules: {str(error).split(' Currently')[0].splitlines()[0]}") from error
        if base_of(head := adapted.get_base_model().get_output_embeddings()) is not head:
            raise ConfigError(
                "lora: target_modules: the LM head takes no adapters, since its logits are computed a piece at a time; "
                "leave it out"
            )
        merged_copy(adapted)  # as at the end, so that it cannot fail there alone

    def _means(self, name: str, target: str) -> bool:
        """Whether a target is the layer of that name, as peft understands it."""
        if isinstance(self.target_modules, str):
            return re.fullmatch(target, name) is not None
        return name == target or name.endswith(f".{target}")

    def under_head(self, model: PreTrainedModel) -> PreTrainedModel:
        """Puts adapters into the backbone of a model with a scalar head, in place; they and the head then train."""
        from peft import inject_adapter_in_model

        model.requires_grad_(False)
        with self._seeded():
            inject_adapter_in_model(self._config(model.base_model), model.base_model)
        scalar_head(model).requires_grad_(True)
        return model

    def _config(self, model: nn.Module, **more: Any) -> LoraConfig:
        from peft import LoraConfig

        left_out = [*routers_of(model), *_read_as_weights(model)] if self.target_modules == "all-linear" else []
        given: dict[str, Any] = {"target_modules": self.target_modules, "exclude_modules": left_out or None}
        return LoraConfig(r=self.rank, lora_alpha=self.alpha, lora_dropout=0.0, **given, **more)

    @contextmanager
    def _seeded(self) -> Iterator[None]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            yield


def routers_of(model: nn.Module) -> list[str]:
    """Names of the linear layers that choose the experts of each token; those that are no linear layers are not meant.

    They are called a router, or are a gate with one output an expert.
    """
    config = getattr(model, "config", None)
    given = {} if config is None else vars(config)
    experts = {value for name, value in given.items() if "expert" in name and type(value) is int}

    def routes(name: str, layer: nn.Module) -> bool:
        own = name.split(".")[-2:]
        return "rout" in ".".join(own) or ("gate" in own and getattr(layer, "out_features", 0) in experts)

    return [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and routes(name, layer)]


def _read_as_weights(model: nn.Module) -> list[str]:
    """Names of the layers of state-space models that peft refuses: their kernels read the weight past the layer."""
    from peft import LoraConfig
    from peft.tuners.tuners_utils import _check_lora_target_modules_mamba

    asked = LoraConfig()

    def refused(leaf: str) -> bool:
        try:
            _check_lora_target_modules_mamba(asked, model, leaf)
        except ValueError:
            return True
        return False

    names = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    return [name for name in names if refused(name.rpartition(".")[2])]


@contextmanager
def adapters_off(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """The model as it was before its adapters, for the time of the context."""
    with model.disable_adapter():  # type: ignore[operator]
        yield model


def merged_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy without adapters: they are added to the weights they adapt.

    The copy of a 16-bit model with adapters is float32, since most of what small adapters change is less than the last
    digit of a 16-bit weight.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    copied = copy.deepcopy(model)
    adapted = [(name, layer) for name, layer in copied.named_modules() if isinstance(layer, BaseTunerLayer)]
    for tensor in (*copied.parameters(), *copied.buffers()) if adapted else ():
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(torch.promote_types(tensor.dtype, torch.float32))
    for _, layer in adapted:
        layer.merge()
    for name, layer in reversed(adapted):  # a layer may be wrapped once for each of its weights: innermost first
        copied.set_submodule(name, layer.base_layer)
    return copied.requires_grad_(False).eval()


def untied(model: PreTrainedModel) -> PreTrainedModel:
    """An adapted model whose LM head has a weight of its own where it shared that of an adapted embedding; in place."""
    inner: Any = model.get_base_model()  # type: ignore[operator]
    embedding, head = inner.get_input_embeddings(), inner.get_output_embeddings()
    shared = head is not None and getattr(head, "weight", None) is base_of(embedding).weight
    if shared and base_of(embedding) is not embedding:
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        inner.config.tie_word_embeddings = inner.config.get_text_config().tie_word_embeddings = False
        inner.all_tied_weights_keys = {}
    return model


def with_adapters(base: PreTrainedModel, folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The model that adapters make of their base, merged in float32 at least and then of the type wanted.

    Raises:
        ModelSourceError: If they are not of this model.
    """
    from peft import PeftModel

    base = base.to(torch.promote_types(base.dtype, torch.float32))  # type: ignore[arg-type]
    try:
        adapted: Any = untied(PeftModel.from_pretrained(base, folder))  # type: ignore[arg-type]
    except (ValueError, RuntimeError, OSError) as error:
        raise ModelSourceError(f"model folder {folder}: its adapters do not fit their base: {error}") from error
    merged: PreTrainedModel = adapted.merge_and_unload().eval().to(dtype)
    return merged


def base_of(layer: Any) -> Any:
    """The layer under its adapters, or the layer itself."""
    return layer.get_base_layer() if "base_layer" in getattr(layer, "_modules", ()) else layer


def _has_weight(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear | nn.Embedding) or type(layer).__name__ == "Conv1D"
