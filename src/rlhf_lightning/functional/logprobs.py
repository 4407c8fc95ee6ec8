"""Log-probs of tokens, from logits or, without ever holding them all, from hidden states and the LM head.

Units are nats. Softmax, log-probs and entropy are computed in float32 when the inputs are narrower, and returned so.
"""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from rlhf_lightning.functional._chunked import LinearLogprobs, wide


def token_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-probs of the given tokens: ``log p[t] = z[t] - logsumexp(z)``.

    Args:
        logits: (..., V) logits z, already divided by the sampling temperature.
        tokens: (...) int64 token ids. Padding needs a valid id too (0, say); mask its value afterwards.

    Returns:
        (...) log-probs in nats per token, float32 or wider.
    """
    logprobs = torch.log_softmax(logits.to(wide(logits.dtype)), dim=-1)
    return logprobs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


@overload
def chunked_token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    tokens: Tensor,
    *,
    chunk_size: int,
    temperature: float = ...,
    return_entropy: Literal[False] = ...,
    bias: Tensor | None = ...,
    float32_products: bool = ...,
) -> Tensor: ...


@overload
def chunked_token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    tokens: Tensor,
    *,
    chunk_size: int,
    temperature: float = ...,
    return_entropy: Literal[True],
    bias: Tensor | None = ...,
    float32_products: bool = ...,
) -> tuple[Tensor, Tensor]: ...


def chunked_token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    tokens: Tensor,
    *,
    chunk_size: int,
    temperature: float = 1.0,
    return_entropy: bool = False,
    bias: Tensor | None = None,
    float32_products: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Log-probs of tokens from hidden states and the LM head, ``chunk_size`` rows of logits at a time.

    .. math::
        z_n = (W h_n + b) / \tau, \qquad \log p_n = z_n[t_n] - \log\sum_v e^{z_n[v]}, \qquad
        H_n = -\sum_v p_n[v] \log p_n[v]

    The values and gradients are those of the full logits, in far less memory: at most ``chunk_size`` rows of logits are
    held at once (two or three copies of them when the entropy is asked for or the inputs are narrower than float32).
    What backward needs depends on what is trained:

    - head frozen (LoRA): forward saves d log p / d hidden, N·H numbers, and backward only scales it;
    - head trained and N <= ``chunk_size``: the one chunk of probabilities is kept;
    - head trained and more chunks, or a gradient through the entropy: the logits are computed again, chunk by chunk.

    Under ``torch.no_grad`` nothing is saved. Differentiable once, in hidden, weight and bias. Under autocast the inputs
    are cast as for a linear layer.

    Args:
        hidden: (..., H) hidden states that predict the tokens.
        weight: (V, H) weight of the LM head.
        tokens: (...) int64 token ids.
        chunk_size: Most rows of logits held at once; the rows are spread evenly over the chunks.
        temperature: tau, divides the logits, in float32 or wider; above 0.
        return_entropy: Also return the entropy of each row's distribution.
        bias: (V,) bias of the LM head.
        float32_products: Whether narrower inputs are multiplied in float32, under autocast too. Otherwise each logit is
            rounded to their type: bfloat16 leaves a logit of 20 an error of up to 1/16.

    Returns:
        (...) log-probs in nats per token, float32 or wider; with ``return_entropy`` a pair of them and the (...)
        entropies in nats.

    Raises:
        ValueError: If ``chunk_size`` or ``temperature`` is out of range, or hidden and tokens differ in shape.
    """
    _check(hidden, tokens, chunk_size, temperature)
    cast = (lambda x: x.to(wide(x.dtype))) if float32_products else _autocast
    hidden, weight, bias = cast(hidden), cast(weight), None if bias is None else cast(bias)
    rows = hidden.reshape(-1, hidden.shape[-1])
    with torch.autocast(hidden.device.type, enabled=False):  # they are of the type that products shall have
        logprobs, entropy = _apply(rows, weight, bias, tokens.reshape(-1), chunk_size, return_entropy, temperature)
    if entropy is None:
        return logprobs.view(tokens.shape)
    return logprobs.view(tokens.shape), entropy.view(tokens.shape)


def _apply(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tokens: Tensor,
    chunk_size: int,
    with_entropy: bool,
    temperature: float,
) -> tuple[Tensor, Tensor | None]:
    train = torch.is_grad_enabled()
    result: tuple[Tensor, Tensor | None] = LinearLogprobs.apply(  # type: ignore[no-untyped-call]
        rows, weight, bias, tokens, chunk_size, with_entropy, train, temperature
    )
    return result


def _check(hidden: Tensor, tokens: Tensor, chunk_size: int, temperature: float) -> None:
    if hidden.shape[:-1] != tokens.shape:
        raise ValueError(f"hidden {tuple(hidden.shape)} and tokens {tuple(tokens.shape)} do not match")
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")


def _autocast(x: Tensor) -> Tensor:
    """Casts as autocast would cast the inputs of a linear layer."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x
