"""Small runs to plan and then to make: models, modules and shapes that differ in what rules their memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

ADAMW = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-6, "fused": True}}
KL = {"estimator": "k1", "controller": {"name": "fixed", "coefficient": 0.01}}

SIZES: dict[str, dict[str, int]] = {
    "tiny": {
        "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 1024,
    },
    "60M": {
        "hidden_size": 640, "intermediate_size": 1920, "num_hidden_layers": 8, "num_attention_heads": 10,
        "num_key_value_heads": 5, "vocab_size": 16384,
    },
    "110M": {
        "hidden_size": 768, "intermediate_size": 2304, "num_hidden_layers": 12, "num_attention_heads": 12,
        "num_key_value_heads": 4, "vocab_size": 16384,
    },
}  # fmt: skip
"""Of Llamas; 2 M, 62 M and 108 M parameters."""


def policy_run(
    kind: str, model: Path, *, new_tokens: int, prompts: int = 8, updates: int = 1, **more: Any
) -> dict[str, Any]:
    """A run of an on-policy module: each rollout ``prompts`` prompts of 4 samples, of full length."""
    arguments = {
        "policy": {"name": "folder", "path": str(model)},
        "sampler": {"name": "in_process", "max_new_tokens": new_tokens},
        "optimizer": ADAMW,
        "prompts_per_rollout": prompts,
        "samples_per_prompt": 4,
        "updates_per_rollout": updates,
        "token_budget": 4096,
        **more,
    }
    return _run(kind, arguments, "PromptData", {"name": "chained_arithmetic", "terms": 24, "held_out": 8})


def sft_run(model: Path, **more: Any) -> dict[str, Any]:
    """A run of supervised training."""
    arguments = {
        "policy": {"name": "folder", "path": str(model)}, "optimizer": ADAMW, "batch_size": 12,
        "updates_per_epoch": 2, "token_budget": 4096, **more,
    }  # fmt: skip
    return _run("SFTModule", arguments, "DemonstrationData", {"name": "chained_arithmetic", "terms": 8, "held_out": 8})


def _run(kind: str, arguments: dict[str, Any], data: str, task: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": {"class_path": kind, "init_args": arguments},
        "data": {"class_path": data, "init_args": {"task": task}},
        "trainer": {"max_epochs": 3, "enable_progress_bar": False},
    }
