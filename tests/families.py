"""Tiny random models of any family of transformers, over our character tokenizer."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from rlhf_lightning.models.small import small_config, small_model
from rlhf_lightning.models.tiny import ALPHABET, character_tokenizer
from rlhf_lightning.protocols import ModelSource


class Family(ModelSource):
    """A small random model of a family.

    Args:
        kind: Its ``model_type``.
        context_length: Longest sequence.
        values: Of the configuration, before it is made small.
    """

    def __init__(self, kind: str, context_length: int = 256, **values: Any) -> None:
        self.kind, self.context_length, self.values = kind, context_length, values

    @property
    def place(self) -> str:
        return f"a small {self.kind}"

    def config(self) -> transformers.PretrainedConfig:
        tokens = {"vocab_size": len(ALPHABET) + 2, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
        return small_config(CONFIG_MAPPING[self.kind](**tokens, **self.values))

    def tokenizer(self) -> Any:
        return character_tokenizer(self.context_length)

    def load(self) -> Any:
        config = self.config()
        model = small_model(transformers.AutoModelForCausalLM._model_mapping[type(config)], config)
        model.requires_grad_(True)
        return model

    def identity(self) -> str:
        return f"{self.kind} {self.values}"


def write(source: Family, folder: Any) -> None:
    """Writes the source's model as a folder."""
    source.load().save_pretrained(folder)
    source.tokenizer().save_pretrained(folder)


def plain_logprobs(model: Any, prompt: list[int], response: list[int], temperature: float = 1.0) -> torch.Tensor:
    """Of a response, by one forward of its sequence alone."""
    logits = model(input_ids=torch.tensor([prompt + response]), use_cache=False).logits[0].float() / temperature
    logprobs = logits.log_softmax(-1)
    return torch.stack([logprobs[len(prompt) - 1 + t, token] for t, token in enumerate(response)])
