"""Jobs and models for tests of plans."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig

from rlhf_lightning.holdings import Decoding, Forward, Updates
from rlhf_lightning.planning.cards import card_named
from rlhf_lightning.planning.job import Job, Lengths, Model, Optimizer
from rlhf_lightning.planning.shapes import Shape, shape_of
from rlhf_lightning.planning.sharding import rule_of
from rlhf_lightning.plugins import load_builtins

load_builtins()
ADAMW = Optimizer(2.0, 0.0, 0.0, "AdamW")

LLAMA = {
    "model_type": "llama", "vocab_size": 512, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False,
}  # fmt: skip


def shape(**changed: Any) -> Shape:
    """Of a small Llama."""
    return shape_of(AutoConfig.for_model(**{**LLAMA, **changed}))


def big() -> Shape:
    """Of GLM-4-9B."""
    return shape_of(card_named("glm4-9b").config())


def job(*models: Model, strategy: str | None = None, devices: int = 1, **changed: Any) -> Job:
    """An on-policy run on one CPU, of the small Llama with float32 weights unless told otherwise."""
    given = models or (Model("policy", "here", shape(), 4, trained=True),)
    settings: dict[str, Any] = {
        "updates": Updates(2, 4, 2, 256, 1, 64),
        "forwards": (Forward("reference", "policy", True),),
        "decoding": Decoding(16, 8),
        "draws": True,
        "exact": True,
        "evaluates": False,
        "lengths": Lengths(8, 16),
        "optimizer": ADAMW,
        "autocast": 0,
        "rule": rule_of(strategy, devices),
        "devices": devices,
        "memory": 1e9,
        "saves": False,
    }
    return Job(given, **{**settings, **changed})
