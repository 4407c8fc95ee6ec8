"""Llamas small enough for a laptop, and a tokenizer of characters, both made from nothing."""

from __future__ import annotations

import string
from typing import TYPE_CHECKING

import torch

from rlhf_lightning.protocols import ModelSource
from rlhf_lightning.registry import register

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

PAD, EOS = "<pad>", "<eos>"
ALPHABET = "\n" + string.digits + string.ascii_letters + string.punctuation + " "
"""The characters that :func:`character_tokenizer` knows."""


def character_tokenizer(context_length: int = 256) -> PreTrainedTokenizerBase:
    """A tokenizer whose tokens are the printable ASCII characters and the line feed, with ``<pad>`` and ``<eos>``."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate([PAD, EOS, *ALPHABET])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=PAD))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        model_max_length=context_length,
        clean_up_tokenization_spaces=False,
    )


@register("model_source", "tiny-llama")
class TinyLlama(ModelSource):
    """A randomly initialised Llama over characters, to train from nothing.

    Args:
        hidden: Width.
        layers: Depth.
        heads: Attention heads.
        intermediate: Width of the MLP; 3·hidden when not given.
        context_length: Longest sequence, in tokens.
        seed: Of the initial weights.
    """

    def __init__(
        self,
        hidden: int = 64,
        layers: int = 4,
        heads: int = 4,
        intermediate: int | None = None,
        context_length: int = 256,
        seed: int = 0,
    ) -> None:
        self.hidden, self.layers, self.heads = hidden, layers, heads
        self.intermediate = intermediate or 3 * hidden
        self.context_length, self.seed = context_length, seed

    def config(self) -> PretrainedConfig:
        """A Llama configuration with tied embeddings."""
        from transformers import LlamaConfig

        return LlamaConfig(
            vocab_size=len(ALPHABET) + 2,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            max_position_embeddings=self.context_length,
            tie_word_embeddings=True,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=None,
        )

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The character tokenizer."""
        return character_tokenizer(self.context_length)

    def load(self) -> PreTrainedModel:
        """The model, a function of ``seed`` alone."""
        from transformers import LlamaForCausalLM

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return LlamaForCausalLM(self.config()).eval()

    def identity(self) -> str:
        """The shape and the seed."""
        return f"tiny-llama {self.hidden}x{self.layers}x{self.heads}x{self.intermediate} seed {self.seed}"
