"""PPO's loss of one update by ordinary forwards, one sequence at a time, and token by token from there."""

import torch
from torch import Tensor


def log_probs(policy, prompt: tuple[int, ...], response: list[int], temperature: float) -> list[Tensor]:
    """log pi(token | prompt and what stands before it), at a temperature."""
    states = policy(input_ids=torch.tensor([[*prompt, *response]]), use_cache=False)
    logits = states.logits[0] / temperature
    first = len(prompt) - 1
    return [torch.log_softmax(logits[first + t], -1)[token] for t, token in enumerate(response)]


def token_values(backbone, head: Tensor, prompt: tuple[int, ...], response: list[int]) -> list[Tensor]:
    """V of the state before each response token is drawn: the head on the last hidden state at the place before it."""
    hidden = backbone(input_ids=torch.tensor([[*prompt, *response]]), use_cache=False).last_hidden_state[0]
    return [hidden[len(prompt) - 1 + t] @ head for t in range(len(response))]


def policy_term(new: Tensor, old: float, advantage: float, low: float, high: float) -> Tensor:
    ratio = torch.exp(new - old)
    return -torch.min(ratio * advantage, torch.clamp(ratio, 1 - low, 1 + high) * advantage)


def value_term(value: Tensor, old: float, target: float, clip: float) -> Tensor:
    near = torch.clamp(value, old - clip, old + clip)
    return 0.5 * torch.max((value - target) ** 2, (near - target) ** 2)


def update_loss(
    sequences: list[dict], *, clip: float, value_clip: float, value_coefficient: float
) -> tuple[Tensor, Tensor]:
    """Token means of both terms over a whole update.

    Each sequence holds lists over its tokens: ``new`` and ``values`` (with gradient), ``old``, ``old_values``,
    ``returns`` and ``advantages`` (numbers).
    """
    policy, value, count = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64), 0
    for s in sequences:
        for t in range(len(s["new"])):
            policy = policy + policy_term(s["new"][t], s["old"][t], s["advantages"][t], clip, clip)
            value = value + value_term(s["values"][t], s["old_values"][t], s["returns"][t], value_clip)
            count += 1
    return policy / count, value_coefficient * value / count
