"""What is run: models, prompts, and the floating-point operations that a step cannot do without."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROMPTS, SAMPLES, NEW_TOKENS, BETA, LEARNING_RATE = 4, 8, 64, 0.04, 1e-9
"""Prompts a step, M samples a prompt, forced response length, KL coefficient, and a rate that changes nothing."""

VOCABULARY = 1000


@dataclass(frozen=True)
class Case:
    """One model with prompts of one length.

    Attributes:
        title: What the table calls it.
        prompt_tokens: Tokens of every prompt.
        folder: Gives the model's folder, making it first (below the given one) if there is none.
        target: The speed-up that is asked for.
        peer_rows: Sequences of one of the peer's micro-batches; 16 padded ones of 320 tokens already take 16 GB.
    """

    title: str
    prompt_tokens: int
    folder: Callable[[Path], Path]
    target: float
    peer_rows: int = PROMPTS * SAMPLES


def tiny_llama(root: Path) -> Path:
    """A random Llama of 0.87 M parameters, whose tokens are the words ``w0`` … ``w999``."""
    target = root / "tiny"
    if target.is_dir():
        return target
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = {f"w{i}": i for i in range(VOCABULARY - 2)} | {"<eos>": VOCABULARY - 2, "<unk>": VOCABULARY - 1}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>", unk_token="<unk>")
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=128, intermediate_size=312, num_hidden_layers=4, num_attention_heads=4,
        tie_word_embeddings=True, max_position_embeddings=1024, pad_token_id=VOCABULARY - 2,
        eos_token_id=VOCABULARY - 2, bos_token_id=None, initializer_range=0.1,
    )  # fmt: skip
    torch.manual_seed(0)
    aside = target.with_name("tiny.new")
    LlamaForCausalLM(config).save_pretrained(aside)
    fast.save_pretrained(aside)
    return aside.rename(target)


def smollm2(root: Path) -> Path:
    """SmolLM2-135M-Instruct, from the package that carries it."""
    from rlhf_lightning.models.sources import SmolLM2

    return SmolLM2()._folder().path


CASES = {
    "tiny": Case("tiny Llama 0.87 M, prompt 45", 45, tiny_llama, 4.0),
    "smol45": Case("SmolLM2-135M, prompt 45", 45, smollm2, 2.2),
    "smol256": Case("SmolLM2-135M, prompt 256", 256, smollm2, 2.8, peer_rows=16),
}


def prompt_texts(tokenizer: Any, tokens: int, count: int, seed: int = 0) -> list[str]:
    """Distinct texts of exactly ``tokens`` tokens, the same for both sides."""
    rng = random.Random(seed)
    texts: list[str] = []
    while len(texts) < count:
        ids = tokenizer(_passage(tokenizer, rng, tokens))["input_ids"][:tokens]
        text = tokenizer.decode(ids)
        if tokenizer(text)["input_ids"] == ids and text not in texts:
            texts.append(text)
    return texts


def _passage(tokenizer: Any, rng: random.Random, tokens: int) -> str:
    if len(tokenizer) == VOCABULARY:
        return " ".join(f"w{rng.randrange(VOCABULARY - 2)}" for _ in range(tokens))
    names, things = ["Ada", "Ben", "Cleo", "Dan", "Eva"], ["apples", "stones", "books", "coins", "shells"]
    lines = (
        f"{rng.choice(names)} has {rng.randint(2, 99)} {rng.choice(things)} and gives {rng.randint(1, 9)} of them away."
        for _ in range(tokens)
    )
    return "Add up what is left at the end. " + " ".join(lines)


def matrix_parameters(model: PreTrainedModel) -> int:
    """Elements of the weights that every token is multiplied with; a tied embedding counts once, as the head."""
    weights = {id(p): p.numel() for p in model.parameters() if p.ndim == 2}
    embedding = model.get_input_embeddings().weight
    tied = embedding is model.get_output_embeddings().weight
    return sum(weights.values()) - (0 if tied else embedding.numel())


def ideal_flops(parameters: int, prompt_tokens: int) -> dict[str, float]:
    """Operations of one step with each prompt computed once: 2N a token forward, 4N a token backward.

    Attention products and all that is not a matrix product with a weight are left out, so this is a lower limit.
    """
    new = PROMPTS * SAMPLES * NEW_TOKENS
    row = PROMPTS * prompt_tokens + new
    one_pass = 2.0 * parameters * row
    return {
        "generation": 2.0 * parameters * new,
        "reference": one_pass,
        "forward": one_pass,
        "backward": 2 * one_pass,
    }
