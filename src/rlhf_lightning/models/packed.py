"""The training forward over packed rows: hidden states and log-probs of response tokens, each prompt computed once.

Serves reinforcement learning (a group of responses a prompt), reference log-probs (under ``torch.no_grad``) and
supervised training (one response a prompt).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor, nn

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional.logprobs import chunked_token_logprobs
from rlhf_lightning.functional.packing import pack_groups
from rlhf_lightning.models.attention import use_packed_attention
from rlhf_lightning.models.attention_layout import attention_layout
from rlhf_lightning.models.through import through
from rlhf_lightning.types import PackedSequences

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FEW_LOGITS = 1 << 22
"""Logits, of a small vocabulary say, that are held whatever the number of their rows."""

_SCALED_LOGITS = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")


def packed_hidden_states(model: PreTrainedModel, packed: PackedSequences) -> Tensor:
    """Final hidden states (after the last norm, before the LM head) that predict each response token.

    Equal to those of the ordinary forward over padded prompt + response, up to rounding, but the row holds each prompt
    once and no padding. Differentiable; works with gradient checkpointing, adapters and any floating-point type.

    Args:
        model: A transformers causal LM, or one wrapped by peft. Its attention implementation is switched once to one
            that acts as before outside this function (see ``models.attention``).
        packed: The row, on the model's device.

    Returns:
        (R, H), in the order of ``packed.targets``.

    Raises:
        ConfigError: If the architecture cannot run packed.
    """
    return through(causal_lm(model), lambda: _predicting_states(model, packed))


def packed_states(model: PreTrainedModel, packed: PackedSequences, places: Tensor) -> Tensor:
    """(K, H) final hidden states at places of the row, to be called inside ``through`` of the model's root.

    A last layer that can (``models.lean``) computes the states that are asked for, and no others.

    Args:
        model: As for :func:`packed_hidden_states`.
        packed: The row.
        places: (K,) positions in the row.
    """
    inner: Any = causal_lm(model)
    use_packed_attention(inner)
    wanted, of_place = places.unique(return_inverse=True)
    output = inner.base_model(
        input_ids=packed.input_ids[None],
        position_ids=packed.position_ids[None],
        attention_mask=_no_mask(packed.input_ids.device),
        use_cache=False,
        packed_layout=attention_layout(packed, inner.dtype, wanted),
    )
    hidden: Tensor = output.last_hidden_state[0]
    return hidden.index_select(0, places if len(hidden) == len(packed.input_ids) else of_place)


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
    settings: dict[str, Any] = {"temperature": temperature, "return_entropy": return_entropy}

    def compute() -> Tensor | tuple[Tensor, Tensor]:
        return _head_logprobs(
            model, _predicting_states(model, packed), packed.targets, chunk_size=chunk_size, **settings
        )

    return through(causal_lm(model), compute)


def packed_hidden_and_logprobs(
    model: PreTrainedModel, packed: PackedSequences, *, temperature: float = 1.0, chunk_size: int = 1024
) -> tuple[Tensor, Tensor]:
    """(R, H) as :func:`packed_hidden_states` and (R,) as :func:`packed_logprobs`, from one forward."""

    def compute() -> tuple[Tensor, Tensor]:
        hidden = _predicting_states(model, packed)
        logprobs = _head_logprobs(model, hidden, packed.targets, temperature=temperature, chunk_size=chunk_size)
        assert isinstance(logprobs, Tensor)
        return hidden, logprobs

    return through(causal_lm(model), compute)


def _predicting_states(model: PreTrainedModel, packed: PackedSequences) -> Tensor:
    return packed_states(model, packed, packed.predict_index)


def _head_logprobs(
    model: PreTrainedModel, hidden: Tensor, targets: Tensor, *, chunk_size: int, **settings: Any
) -> Tensor | tuple[Tensor, Tensor]:
    head = output_head(model)

    def compute(hidden: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        size = max(chunk_size, FEW_LOGITS // len(head.weight))
        return chunked_token_logprobs(hidden, head.weight, targets, chunk_size=size, bias=head.bias, **settings)  # type: ignore[no-any-return]

    return through(head, compute, hidden)


def causal_lm(model: Any) -> PreTrainedModel:
    """The transformers model inside a peft wrapper (its adapters act in it), or the model itself."""
    inner: PreTrainedModel = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inner


def output_head(model: PreTrainedModel) -> nn.Linear:
    """The LM head.

    Raises:
        ConfigError: If there is none, or it is not a plain linear layer (an adapted one, say).
    """
    head = causal_lm(model).get_output_embeddings()  # type: ignore[no-untyped-call]
    if not isinstance(head, nn.Linear):
        raise ConfigError(
            f"packed training needs an LM head that is a plain linear layer, {type(causal_lm(model)).__name__} has "
            f"{type(head).__name__}; leave the head out of the adapter's target_modules"
        )
    return head


def check_packable(model: PreTrainedModel, *, max_length: int | None = None, probe: bool = True) -> None:
    """Makes sure, before any training, that a model's packed forward is its ordinary forward.

    Args:
        model: As for ``packed_hidden_states``.
        max_length: Longest prompt + response to come, in tokens; without it, any attention window is refused.
        probe: Also compare log-probs of both forwards on two short sequences. Skipped for weights on the meta device.

    Raises:
        ConfigError: Naming the feature that packing does not honour, or the difference seen.
    """
    inner = causal_lm(model)
    name, config = type(inner).__name__, inner.config.get_text_config()
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        raise ConfigError("packed training does not support prompt-learning adapters; use LoRA")
    if config.is_encoder_decoder or getattr(inner, "_is_stateful", False) or not inner._supports_attention_backend:
        raise ConfigError(f"packed training needs a decoder that uses transformers' attention interface, not {name}")
    _check_layers(name, config, max_length)
    scaled = [key for key in _SCALED_LOGITS if getattr(config, key, None) not in (None, 1)]
    if scaled:
        raise ConfigError(f"packed training does not support {', '.join(scaled)} in the configuration of {name}")
    output_head(model)
    if probe and not any(parameter.is_meta for parameter in inner.parameters()):
        _probe(model)


def _check_layers(name: str, config: Any, max_length: int | None) -> None:
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    other = sorted(kinds - {"full_attention", "sliding_attention"})
    if other:
        raise ConfigError(f"packed training does not support layers of type {', '.join(other)} in {name}")
    window = getattr(config, "sliding_window", None)
    windowed = "sliding_attention" in kinds or getattr(config, "layer_types", None) is None
    if window and windowed and (max_length is None or max_length > window):
        length = "of unknown length" if max_length is None else f"of up to {max_length} tokens"
        raise ConfigError(f"packed training cannot honour {name}'s sliding_window of {window} for sequences {length}")
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope in ("dynamic", "longrope"):
        raise ConfigError(f"packed training does not support rope_type {rope!r} of {name}: it depends on batch mates")


@torch.no_grad()
def _probe(model: PreTrainedModel) -> None:
    inner: Any = causal_lm(model)
    vocabulary = int(inner.get_input_embeddings().weight.shape[0])
    prompts = [[(7 * i + 3) % vocabulary for i in range(n)] for n in (3, 5)]
    tokens = torch.tensor([[5, 11, 2, 9], [8, 1, 0, 0], [6, 4, 10, 0], [12, 0, 0, 0]], device=inner.device) % vocabulary
    mask = torch.arange(4, device=inner.device) < torch.tensor([[4], [2], [3], [1]], device=inner.device)
    training = model.training
    model.train(False)
    try:
        packed = pack_groups(prompts, tokens, mask)
        got = packed.to_rows(packed_logprobs(model, packed))
        rows = zip([prompts[0], prompts[0], prompts[1], prompts[1]], tokens, mask, strict=True)
        want = torch.stack([_plain_logprobs(model, prompt, row, m) for prompt, row, m in rows])
    finally:
        model.train(training)
    worst = float((got - want).abs().max())
    if not worst <= max(1e-3, 50 * torch.finfo(inner.dtype).eps):
        raise ConfigError(
            f"the packed forward of {type(inner).__name__} differs from its ordinary forward by {worst:.3g} nats a "
            "token: the architecture has a feature that packing does not know"
        )


def _plain_logprobs(model: Any, prompt: list[int], row: Tensor, mask: Tensor) -> Tensor:
    """(T,) log-probs of one response by the ordinary forward, 0 off the mask."""
    sequence = torch.cat([torch.tensor(prompt, device=row.device), row])[None]
    logits: Tensor = model(input_ids=sequence, use_cache=False).logits[0, len(prompt) - 1 : -1]
    logprobs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    return logprobs.gather(-1, row[:, None]).squeeze(-1) * mask


def _no_mask(device: torch.device) -> Tensor:
    """A mask of four dimensions is handed on as it is; this one is empty, so that no attention uses it by mistake."""
    return torch.empty(1, 1, 0, 0, dtype=torch.bool, device=device)
