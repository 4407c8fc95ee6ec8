"""Random models small enough to sample from in a test, and prompts for them."""

import torch
import transformers as hf

from rlhf_lightning.models.tiny import character_tokenizer
from rlhf_lightning.types import Problem, Prompt, Rollout

VOCABULARY = 97
TOKENIZER = character_tokenizer()
ENDLESS = character_tokenizer()
ENDLESS.eos_token = None
QUESTIONS = ("1+2=", "13+4567=\nwhy?", "a")
NO_ENDS = {"eos_token_id": None, "bos_token_id": None, "pad_token_id": 0}
LLAMA_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}

CONFIGS = {
    "llama": lambda **kw: hf.LlamaConfig(**{**LLAMA_SIZES, **NO_ENDS, **kw}),
    "mistral": lambda **kw: hf.MistralConfig(**{**LLAMA_SIZES, **NO_ENDS, "sliding_window": None, "head_dim": 8, **kw}),
    "qwen2": lambda **kw: hf.Qwen2Config(**{**LLAMA_SIZES, **NO_ENDS, **kw}),
    "qwen3": lambda **kw: hf.Qwen3Config(**{**LLAMA_SIZES, **NO_ENDS, "head_dim": 16, **kw}),
    "glm": lambda **kw: hf.GlmConfig(**{**LLAMA_SIZES, **NO_ENDS, "head_dim": 8, **kw}),
    "gpt2": lambda **kw: hf.GPT2Config(
        **{"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, **NO_ENDS, **kw}
    ),
    "gpt_neox": lambda **kw: hf.GPTNeoXConfig(
        **{**{k: v for k, v in LLAMA_SIZES.items() if k != "num_key_value_heads"}, **NO_ENDS, **kw}
    ),
    "bloom": lambda **kw: hf.BloomConfig(
        **{"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4, **NO_ENDS, **kw}
    ),
}


def random_model(architecture: str, *, scale: float = 4.0, inner: float = 1.0, seed: int = 0, **config: object):
    """A random model, biases and norms included.

    ``scale`` multiplies all matrices, ``inner`` those that are neither embedding nor head: the larger it is, the less
    a greedy answer repeats itself.
    """
    torch.manual_seed(seed)
    model = hf.AutoModelForCausalLM.from_config(CONFIGS[architecture](**config)).eval()
    outer = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(scale if id(parameter) in outer else scale * inner)
            else:
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.generation_config.eos_token_id = model.config.eos_token_id
    return model


def prompts(*questions: str) -> list[Prompt]:
    return [
        Prompt(Problem(str(index), text), "test", text, tuple(TOKENIZER(text)["input_ids"]), index)
        for index, text in enumerate(questions or QUESTIONS)
    ]


def generated(model, questions: list[Prompt], max_new_tokens: int) -> torch.Tensor:
    """What ``model.generate`` answers greedily, all prompts in one left-padded batch."""
    width = max(len(prompt.tokens) for prompt in questions)
    ids = torch.tensor([[0] * (width - len(p.tokens)) + list(p.tokens) for p in questions])
    real = torch.tensor([[0] * (width - len(p.tokens)) + [1] * len(p.tokens) for p in questions])
    answer = model.generate(
        ids, attention_mask=real, do_sample=False, max_new_tokens=max_new_tokens, pad_token_id=0, use_cache=True
    )
    return answer[:, width:]


@torch.no_grad()
def forward_logprobs(model, rollout: Rollout, sequence: int, temperature: float = 1.0) -> torch.Tensor:
    """The whole-vocabulary log-probs (t, V) that the model's own forward gives at each response token."""
    prompt, length = rollout.prompt_of(sequence).tokens, int(rollout.lengths[sequence])
    ids = torch.tensor([[*prompt, *rollout.tokens[sequence, :length].tolist()]])
    logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float()
    return (logits / temperature).log_softmax(dim=-1)


def worst_error(model, rollout: Rollout, temperature: float = 1.0) -> float:
    """Largest difference between the rollout's log-probs and the model's own."""
    worst = 0.0
    for sequence, length in enumerate(rollout.lengths.tolist()):
        tokens = rollout.tokens[sequence, :length, None]
        own = forward_logprobs(model, rollout, sequence, temperature).gather(1, tokens).squeeze(1)
        worst = max(worst, float((own - rollout.logprobs[sequence, :length]).abs().max()))
    return worst
