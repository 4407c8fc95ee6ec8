"""What is worth reading of a rollout: its responses as plain values, and one of them token by token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from rlhf_lightning.samplers.texts import decoded
from rlhf_lightning.types import Experience

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def samples_of(experience: Experience) -> list[dict[str, Any]]:
    """Each response with its prompt, scores, reward and advantage, as plain values."""
    rollout, scores = experience.rollout, experience.scores
    mean_advantage = (experience.advantages.values.sum(1) / rollout.drawn.clamp(min=1)).tolist()
    parts = {name: part.tolist() for name, part in scores.parts.items()}
    return [
        {
            "task": rollout.prompt_of(b).task,
            "prompt": rollout.prompt_of(b).text,
            "answer": rollout.prompt_of(b).problem.answer,
            "response": text,
            "scores": {name: values[b] for name, values in parts.items()},
            "reward": float(experience.rewards[b]),
            "advantage": mean_advantage[b],
            "length": int(rollout.lengths[b]),
            "finished": bool(rollout.finished[b]),
        }
        for b, text in enumerate(rollout.texts)
    ]


def token_details(experience: Experience, sequence: int, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Plain values of one response, a list with one entry a token.

    Args:
        experience: The rollout with its advantages.
        sequence: Which of its B responses.
        tokenizer: The policy's.

    Returns:
        ``tokens``: the response's text in pieces, as :func:`token_pieces` gives them. ``logprobs`` and
        ``ref_logprobs``: nats, of the policy that sampled and of the reference, at the sampling temperature.
        ``values``: the critic's, before the token, in the reward's unit. ``advantages``. Reference and critic are None
        where the run has none.
    """
    rollout = experience.rollout
    length = int(rollout.lengths[sequence])

    def row(values: Tensor | None) -> list[float] | None:
        return None if values is None else values[sequence, :length].tolist()

    return {
        "tokens": token_pieces(
            rollout.tokens[sequence, :length].tolist(),
            rollout.texts[sequence],
            tokenizer,
            special=rollout.params.keep_special_tokens,
        ),
        "logprobs": row(experience.old_logprobs),
        "ref_logprobs": row(experience.ref_logprobs),
        "values": row(experience.values),
        "advantages": row(experience.advantages.values),
    }


def token_pieces(
    tokens: Sequence[int], text: str, tokenizer: PreTrainedTokenizerBase, *, special: bool = False
) -> list[str]:
    """Cuts ``text`` into one piece a token; joined, the pieces are ``text``, whatever the tokenizer does.

    A token without text of its own has an empty piece: one that ends the response, or the beginning of a character
    whose bytes are spread over several tokens (its last one has the character). What the tokenizer changes when it
    joins tokens, or leaves unfinished at the end, goes to the last token.

    Args:
        tokens: Token ids.
        text: What they decode to, without what ends them.
        tokenizer: Decodes them.
        special: Whether special tokens are part of the text.
    """
    ids, pieces = list(tokens), list[str]()
    before, last, done = 0, 0, 0  # the last two places where a piece ended, in tokens; and in characters
    for end in range(1, len(ids) + 1):
        known, longer = (decoded(tokenizer, ids[before:to], special=special) for to in (last, end))
        piece = longer[len(known) :]
        fits = bool(piece) and text.startswith(piece, done)
        pieces.append(piece if fits else "")
        if fits:
            before, last, done = last, end, done + len(piece)
    if pieces:
        pieces[-1] += text[done:]
    return pieces
