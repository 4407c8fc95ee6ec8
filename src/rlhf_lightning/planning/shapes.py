"""The sizes of a model that memory and time depend on, read from its skeleton on the meta device."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from torch import nn

from rlhf_lightning.models.layers import decoder_layers
from rlhf_lightning.models.lean import LAYERS
from rlhf_lightning.models.prepare import skeleton
from rlhf_lightning.registry import plugins, resolve

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class Shape:
    """A causal LM's sizes.

    Attributes:
        layers: L.
        hidden: H.
        intermediate: I, the width of the MLP.
        heads: Query heads.
        kv_heads: Key and value heads.
        head_dim: D.
        vocabulary: V.
        per_layer: Parameters of a layer.
        embedding: Parameters of the embedding.
        head: Parameters of the LM head; 0 where it is the embedding.
        rest: Parameters of all else (the last norm).
        norms: Norms of width H in a layer.
        linears: (inputs, outputs) of a layer's linear modules.
        lean: Whether its layers run by hand on CPU (``models.lean_layer``).
        fused_decoder: Whether the sampler has a decoder of its own for it, which copies the weights.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    per_layer: int
    embedding: int
    head: int
    rest: int
    norms: int
    linears: tuple[tuple[int, int], ...]
    lean: bool
    fused_decoder: bool

    @property
    def parameters(self) -> int:
        """Of the causal LM."""
        return self.layers * self.per_layer + self.outer

    @property
    def outer(self) -> int:
        """Parameters outside the layers."""
        return self.embedding + self.head + self.rest

    @property
    def scalar_parameters(self) -> int:
        """With a scalar head in the LM head's place."""
        return self.layers * self.per_layer + self.embedding + self.rest + self.hidden

    @property
    def queries(self) -> int:
        """Width of all query heads."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Width of all key heads, and of all value heads."""
        return self.kv_heads * self.head_dim

    def adapters(self, rank: int) -> int:
        """Parameters of low-rank adapters on every linear module of every layer."""
        return self.layers * sum(rank * (inputs + outputs) for inputs, outputs in self.linears)

    def products(self, *, head: bool) -> int:
        """Weights that each token is multiplied with: layers, and the LM head where logits are computed."""
        of_head = self.vocabulary * self.hidden if head else 0
        return self.layers * sum(inputs * outputs for inputs, outputs in self.linears) + of_head


def shape_of(config: PretrainedConfig) -> Shape:
    """The sizes of a configuration's model, made on the meta device."""
    return _shape(_Config(config.to_json_string(), config))


class _Config:
    """A configuration that equals others of the same text, so that each skeleton is made once."""

    def __init__(self, text: str, config: PretrainedConfig) -> None:
        self.text, self.config = text, config

    def __hash__(self) -> int:
        return hash(self.text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Config) and self.text == other.text


@lru_cache(maxsize=16)
def _shape(given: _Config) -> Shape:
    model: Any = skeleton(given.config)
    text = given.config.get_text_config()
    layers = decoder_layers(model)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head.weight is embedding.weight
    counts = embedding.weight.numel(), 0 if tied else sum(p.numel() for p in head.parameters())
    in_layers = sum(p.numel() for p in nn.ModuleList(layers).parameters())
    total = sum(p.numel() for p in model.parameters())
    heads = getattr(text, "num_attention_heads", None) or 1  # a state-space model has none
    first: Any = layers[0]
    linears = [module for module in first.modules() if isinstance(module, nn.Linear)]
    return Shape(
        layers=len(layers),
        hidden=text.hidden_size,
        intermediate=max(getattr(text, "intermediate_size", 0) or 0, 1),
        heads=heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        vocabulary=embedding.weight.shape[0],
        per_layer=in_layers // len(layers),
        embedding=counts[0],
        head=counts[1],
        rest=total - in_layers - sum(counts) + in_layers % len(layers),
        norms=sum("Norm" in type(m).__name__ and m.weight.numel() == text.hidden_size for m in first.modules()),
        linears=tuple((module.in_features, module.out_features) for module in linears),
        lean=type(layers[0]).__name__ in LAYERS,
        fused_decoder=_has_decoder(given.config),
    )


def _has_decoder(config: Any) -> bool:
    known = config.model_type in plugins("decoder")
    decoder: Any = resolve("decoder", config.model_type) if known else None
    return decoder is not None and bool(decoder.supports(config))
