"""What both sides are given: one tiny model in float64, prompts, and ragged responses that nobody samples."""

import functools
from pathlib import Path

import torch

from rlhf_lightning.data import update_batches
from rlhf_lightning.models import TinyLlama
from rlhf_lightning.models.tiny import character_tokenizer
from rlhf_lightning.types import Advantages, Experience, Problem, Prompt, Rollout, SamplingParams, Scores

ROOT = Path(__file__).parents[2]
PAD, EOS = 0, 1
TEXTS = ["3+4=", "12+5=", "7"]
LENGTHS = [4, 1, 6, 3, 2, 5, 6, 1, 3, 3, 2, 6]
G, T = 4, 6
PARAMETERS = {"hidden": 16, "layers": 2, "heads": 2, "context_length": 32}


def exact(model):
    """RMS norms and rotary angles in the model's float64: transformers' round to float32, which hides what is tested.

    Angles matter because TRL's GRPO counts left padding in the positions: equal to us with rotary embeddings, but for
    the rounding of angles.
    """

    def norm(self, x):
        return self.weight * x * (x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon).rsqrt()

    def angles(self, x, position_ids):
        half = position_ids[..., None].to(x.dtype) * self.inv_freq.to(x.dtype)
        both = torch.cat((half, half), dim=-1)
        return both.cos(), both.sin()

    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = norm.__get__(module)
        if type(module).__name__.endswith("RotaryEmbedding"):
            module.forward = angles.__get__(module)
    return model.eval()


def policy(seed: int = 0):
    """A Llama whose outputs are far from uniform."""
    model = TinyLlama(**PARAMETERS).load().double()
    make = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=make)
    return exact(model)


def folder_of(model, folder: Path) -> Path:
    """The model with its tokenizer, for those who load."""
    model.save_pretrained(folder)
    character_tokenizer(PARAMETERS["context_length"]).save_pretrained(folder)
    return folder


def random(*shape: int, seed: int, scale: float = 1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mask(lengths=LENGTHS):
    return torch.arange(T) < torch.tensor(lengths)[:, None]


@functools.cache
def prompts() -> tuple[Prompt, ...]:
    ids = [tuple(character_tokenizer()(text)["input_ids"]) for text in TEXTS]
    return tuple(Prompt(Problem(str(i), ""), "t", text, ids[i], i) for i, text in enumerate(TEXTS))


def rollout(lengths=LENGTHS, temperature: float = 1.0) -> Rollout:
    """Distinct responses; those shorter than the limit end with the end-of-sequence token."""
    counted = mask(lengths)
    tokens = torch.randint(2, 90, (len(lengths), T), generator=torch.Generator().manual_seed(1))
    for row, length in zip(tokens, lengths, strict=True):
        if length < T:
            row[length - 1] = EOS
    tokens[LENGTHS.index(1), 0] = 50  # a second response of one token that is not the same
    rows = len(lengths)
    params = SamplingParams(max_new_tokens=T, temperature=temperature)
    finished = torch.tensor([length < T for length in lengths])
    return Rollout(prompts(), tokens * counted, counted, torch.zeros(rows, T), finished, ("",) * rows, params)


def experience(made: Rollout, advantages: Advantages, old, ref=None, values=None) -> Experience:
    none = torch.zeros(len(made.tokens))
    return Experience(made, Scores(none, {}, none.bool()), none, advantages, old, ref, {}, values)


def updates(made: Experience, aggregation: str, token_budget: int = 30, monkeypatch=None):
    """One update in float64, cut into several packed micro-batches."""
    weights = functools.partial(update_batches.aggregation_weights, dtype=torch.float64)
    with monkeypatch.context() as patch:
        patch.setattr(update_batches, "aggregation_weights", weights)
        (batches,) = update_batches.updates_of(made, updates=1, token_budget=token_budget, aggregation=aggregation)
    return batches


def padded_logits(model, made: Rollout):
    """(B, T, V) logits that predict each response token, at the rollout's temperature; 0 off the mask."""
    rows = torch.zeros(*made.tokens.shape, model.config.vocab_size)
    with torch.no_grad():
        for i, length in enumerate(made.lengths.tolist()):
            ids = torch.cat([torch.tensor(made.prompt_of(i).tokens), made.tokens[i, :length]])
            rows[i, :length] = model(ids[None], use_cache=False).logits[0, -length - 1 : -1]
    return rows / made.params.temperature


def chosen(logits, made: Rollout):
    """(B, T) log-probs of the responses; 0 off the mask."""
    return logits.log_softmax(-1).gather(2, made.tokens[..., None])[..., 0] * made.mask


def summed_gradient(losses, named) -> dict:
    """Sum of the losses' gradients, by parameter."""
    named = dict(named)
    total = {name: torch.zeros_like(parameter) for name, parameter in named.items()}
    for loss in losses:
        grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        for name, grad in zip(named, grads, strict=True):
            total[name] += 0 if grad is None else grad
    return total


def assert_same_gradients(ours: dict, theirs: dict, *, rel: float) -> None:
    """Every parameter's gradient, in units of its norm."""
    assert set(ours) == set(theirs)
    largest = max(float(grad.norm()) for grad in theirs.values())
    assert largest > 1e-3
    for name, grad in theirs.items():
        distance = float((ours[name] - grad).norm())
        assert distance <= rel * max(float(grad.norm()), 1e-2 * largest), (name, distance, float(grad.norm()))
