"""The model's own forward, in one pass over prompt and response, as what vLLM says is compared with."""

import torch

from rlhf_lightning.samplers.seeds import sample_seeds
from rlhf_lightning.types import Problem, Prompt, Rollout

SMALL = {"max_model_len": 128, "kv_cache_gb": 0.2, "eager": True}
"""Of engines in tests."""

TOLERANCE = 1e-4
"""Nats a token in float32: 1e-6 is usual; a weight that stayed behind makes 1e-2 or more."""

QUESTIONS = ("1+2=", "13+4567=\nwhy?", "a", "What is the sum of 3 and 4?")


def prompts(tokenizer, *questions: str) -> list[Prompt]:
    texts = questions or QUESTIONS
    return [
        Prompt(Problem(str(n), text), "test", text, tuple(tokenizer(text)["input_ids"]), n)
        for n, text in enumerate(texts)
    ]


def draw(sampler, tokenizer, samples=3, seed=0, params=None, questions=QUESTIONS):
    asked = prompts(tokenizer, *questions)
    return sampler(asked, samples_per_prompt=samples, seeds=sample_seeds(seed, 0, asked, samples), params=params)


@torch.no_grad()
def distributions(model, rollout: Rollout, sequence: int, temperature: float = 1.0) -> torch.Tensor:
    """(t, V) log-probs over the whole vocabulary."""
    prompt, length = rollout.prompt_of(sequence).tokens, int(rollout.lengths[sequence])
    ids = torch.tensor([[*prompt, *rollout.tokens[sequence, :length].tolist()]])
    logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float()
    return (logits / temperature).log_softmax(dim=-1)


def errors(model, rollout: Rollout, temperature: float = 1.0) -> torch.Tensor:
    """Absolute differences of the rollout's log-probs from the model's own, one a token."""
    found = []
    for sequence, length in enumerate(rollout.lengths.tolist()):
        tokens = rollout.tokens[sequence, :length, None]
        own = distributions(model, rollout, sequence, temperature).gather(1, tokens).squeeze(1)
        found.append((own - rollout.logprobs[sequence, :length]).abs())
    return torch.cat(found)
