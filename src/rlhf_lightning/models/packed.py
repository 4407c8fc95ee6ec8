"""The training forward over packed rows: hidden states and log-probs of response tokens, each prompt computed once.

Serves reinforcement learning (a group of responses a prompt), reference log-probs (under ``torch.no_grad``) and
supervised training (one response a prompt).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

from torch import Tensor

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.models.layers import causal_lm, output_head
from rlhf_lightning.models.through import through
from rlhf_lightning.models.way_choice import choose_way, keep_way, way_of
from rlhf_lightning.models.ways import Way
from rlhf_lightning.types import PackedSequences

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def packed_hidden_states(model: PreTrainedModel, packed: PackedSequences) -> Tensor:
    """Final hidden states (after the last norm, before the LM head) that predict each response token.

    Equal to those of the ordinary forward over padded prompt + response, up to rounding, but the row holds each prompt
    once and no padding; where an architecture cannot run so, that ordinary forward itself (``models.way_choice``).
    Differentiable; works with gradient checkpointing, adapters and any floating-point type.

    Args:
        model: A transformers causal LM, or one wrapped by peft. Where it runs packed, its attention implementation is
            switched once to one that acts as before outside this function (see ``models.attention``).
        packed: The row, on the model's device.

    Returns:
        (R, H), in the order of ``packed.targets``.

    Raises:
        ConfigError: If the architecture cannot run packed.
    """
    return through(causal_lm(model), lambda: packed_states(model, packed, packed.predict_index))


def packed_states(model: PreTrainedModel, packed: PackedSequences, places: Tensor) -> Tensor:
    """(K, H) final hidden states at places of the row, to be called inside ``through`` of the model's root.

    A last layer that can (``models.lean``) computes the states that are asked for, and no others.

    Args:
        model: As for :func:`packed_hidden_states`.
        packed: The row.
        places: (K,) positions in the row.
    """
    return way_of(model).states(model, packed, places)


@overload
def packed_logprobs(
    model: PreTrainedModel,
    packed: PackedSequences,
    *,
    temperature: float = ...,
    chunk_size: int = ...,
    return_entropy: Literal[False] = ...,
) -> Tensor: ...
@overload
def packed_logprobs(
    model: PreTrainedModel,
    packed: PackedSequences,
    *,
    temperature: float = ...,
    chunk_size: int = ...,
    return_entropy: Literal[True],
) -> tuple[Tensor, Tensor]: ...
def packed_logprobs(
    model: PreTrainedModel,
    packed: PackedSequences,
    *,
    temperature: float = 1.0,
    chunk_size: int = 1024,
    return_entropy: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Log-probs of the response tokens: ``log softmax(W h / temperature)[target]``.

    Args:
        model: As for ``packed_hidden_states``.
        packed: The row; ``packed.to_rows`` brings the result to (b, T).
        temperature: The sampling temperature, above 0.
        chunk_size: Most rows of logits held at once, or as many as make 2^22 logits if those are more.
        return_entropy: Also return the entropies.

    Returns:
        (R,) log-probs in nats per token; with ``return_entropy`` a pair of them and the (R,) entropies in nats.

    Raises:
        ConfigError: If the architecture cannot run packed.
    """
    settings: dict[str, Any] = {"temperature": temperature, "chunk_size": chunk_size, "return_entropy": return_entropy}
    way = way_of(model)
    logprobs, entropy = through(causal_lm(model), lambda: way.logprobs(model, packed, None, **settings))
    return logprobs if entropy is None else (logprobs, entropy)


def packed_hidden_and_logprobs(
    model: PreTrainedModel, packed: PackedSequences, *, temperature: float = 1.0, chunk_size: int = 1024
) -> tuple[Tensor, Tensor]:
    """(R, H) as :func:`packed_hidden_states` and (R,) as :func:`packed_logprobs`, from one forward."""
    way = way_of(model)

    def compute() -> tuple[Tensor, Tensor]:
        hidden = way.states(model, packed, packed.predict_index)
        return hidden, way.logprobs(model, packed, hidden, temperature=temperature, chunk_size=chunk_size)[0]

    return through(causal_lm(model), compute)


def check_packable(model: PreTrainedModel) -> Way:
    """Chooses, before any training, the way of a model's training forward: the quickest that is its plain forward.

    With weights on the meta device, and where the way is first asked for later on, a small model of the configuration
    is tried; else the model itself.

    Args:
        model: As for ``packed_hidden_states``.

    Returns:
        The way, which the model keeps.

    Raises:
        ConfigError: If its tokens see those after them, or its adapters are not of a kind that can be trained here.
    """
    inner = causal_lm(model)
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        raise ConfigError("prompt-learning adapters are not supported; use LoRA")
    if model is not inner and inner.get_output_embeddings() is not None:  # type: ignore[no-untyped-call]
        output_head(model)
    if any(parameter.is_meta for parameter in inner.parameters()):
        return way_of(model)
    training = model.training
    model.eval()  # type: ignore[no-untyped-call]
    try:
        way = choose_way(model)
    finally:
        model.train(training)
    keep_way(model, way)
    return way
