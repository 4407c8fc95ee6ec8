"""The autograd function behind ``chunked_token_logprobs``.

With z the logits of a row, divided by the temperature tau in the type in which exponentials are summed, m the largest
of them, e = exp(z - m), s = sum_v e_v and t the row's token:

    log p_t = z_t - m - log s            d log p_t / d z = -(e - s 1_t) / s
    H       = -sum_v p_v log p_v         d H / d z       = -p (log p + H)

The residual e - s 1_t is made in place from the logits, and every gradient is linear in it: with g the gradient from
above and a = -g / (s tau), d hidden = a (residual W), d W = residual^T (a hidden) and d b = residual^T a. Of d W it is
the transpose that is summed up: so the small hidden states are laid out anew for the product, not the residuals.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial, reduce
from itertools import chain, pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rlhf_lightning.functional._products import product, product_onto, products_kind
from rlhf_lightning.functional._side_by_side import side_by_side

_CACHED = 1 << 21
"""Numbers that are gone over several times at once, so that a processor's cache holds them meanwhile."""

_WORTH_SHARES = 1 << 27
"""Multiplications of a head from which threads of their own for shares of the rows are worth waking."""


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which exponentials are summed: float32, or ``dtype`` where that is wider."""
    return torch.promote_types(dtype, torch.float32)


class LinearLogprobs(torch.autograd.Function):
    """Log-probs and entropies of rows of hidden states under a linear head."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tokens: Tensor,
        chunk_size: int,
        with_entropy: bool,
        train: bool,
        temperature: float,
    ) -> tuple[Tensor, Tensor | None]:
        """(N, H), (V, H), (V,) and (N,) to (N,) log-probs and (N,) entropies or None; saves what backward needs."""
        head_trained = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        steer = train and not head_trained and ctx.needs_input_grad[0]
        keep = train and head_trained and len(hidden) <= chunk_size
        logprobs = hidden.new_empty(len(hidden), dtype=wide(hidden.dtype))
        entropy = torch.empty_like(logprobs) if with_entropy else None
        direction = torch.empty_like(hidden) if steer else None

        def compute(share: slice) -> list[Tensor]:
            kept: list[Tensor] = []
            for rows, logits in _logits_by_chunk(hidden, weight, bias, share, ctx.chunk_size, temperature):
                if entropy is not None:
                    entropy[rows] = _entropy(logits.log_softmax(dim=1))
                logprobs[rows], total = _exponentiate_(logits, tokens[rows])
                if keep:
                    kept = [_residual_(logits, tokens[rows], total).to(hidden.dtype), total]
                if direction is not None:
                    residual = _residual_(logits, tokens[rows], total).to(hidden.dtype)
                    direction[rows] = product(residual, weight).div_(-total * temperature)
            return kept

        ctx.shares, ctx.temperature = _shares(hidden, weight), temperature
        ctx.chunk_size = math.ceil(chunk_size / len(ctx.shares))  # the shares hold their chunks at the same time
        kept = side_by_side([partial(compute, share) for share in ctx.shares])
        ctx.save_for_backward(hidden, weight, bias, tokens, direction, *chain(*kept))
        ctx.set_materialize_grads(False)
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, grad_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of hidden, weight and bias, as far as they are asked for."""
        hidden, weight, _, _, direction, *_ = ctx.saved_tensors
        if grad is None:
            if grad_entropy is None:
                return (None,) * 8
            grad = torch.zeros_like(grad_entropy)
        if direction is not None and grad_entropy is None:
            return (direction * grad[:, None]).to(hidden.dtype), *(None,) * 7
        for_hidden, for_weight, for_bias, *_ = ctx.needs_input_grad
        grad_hidden = torch.empty_like(hidden) if for_hidden else None

        def compute(number: int) -> tuple[Tensor | None, Tensor | None]:
            grad_weight = grad_bias = None  # both transposed
            for rows, residual, scale in _scaled_residuals(ctx, number, grad, grad_entropy):
                if grad_hidden is not None:
                    grad_hidden[rows] = product(residual, weight).mul_(scale)
                if for_weight:
                    grad_weight = _add_product(grad_weight, (hidden[rows] * scale).to(hidden.dtype).t(), residual)
                if for_bias:
                    grad_bias = _add_product(grad_bias, scale.to(hidden.dtype).t(), residual)
            return grad_weight, grad_bias

        found = side_by_side([partial(compute, number) for number in range(len(ctx.shares))])
        grad_weight, grad_bias = (_total(of_shares) for of_shares in zip(*found, strict=True))
        for_parameters = (
            None if grad_weight is None else grad_weight.t().contiguous(),
            None if grad_bias is None else grad_bias[0],
        )
        return grad_hidden, *for_parameters, None, None, None, None, None


_Chunk = tuple[slice, Tensor, Tensor]


def _scaled_residuals(ctx: Any, number: int, grad: Tensor, grad_entropy: Tensor | None) -> Iterator[_Chunk]:
    """Rows, residual and scale of each chunk of a share; their product is the gradient of the logits."""
    hidden, weight, bias, tokens, _, *kept = ctx.saved_tensors
    share, cold = ctx.shares[number], ctx.temperature
    chunks = partial(_logits_by_chunk, hidden, weight, bias, share, ctx.chunk_size, cold)
    if grad_entropy is not None:
        for rows, logits in chunks():
            slope = _slope(logits.log_softmax(dim=1), tokens[rows], grad[rows, None], grad_entropy[rows, None])
            yield rows, slope.to(hidden.dtype), torch.full_like(grad[rows, None], 1 / cold)
    elif kept:
        residual, total = kept[2 * number : 2 * number + 2]
        yield share, residual, -grad[share, None] / (total * cold)
    else:
        for rows, logits in chunks():
            _, total = _exponentiate_(logits, tokens[rows])
            yield rows, _residual_(logits, tokens[rows], total).to(hidden.dtype), -grad[rows, None] / (total * cold)


def _shares(hidden: Tensor, weight: Tensor) -> list[slice]:
    """Stretches of rows, one for each of torch's threads where that many rows are worth waking them."""
    count = 1
    if hidden.device.type == "cpu" and hidden.numel() * len(weight) >= _WORTH_SHARES:
        products_kind()  # measured before threads share it
        count = torch.get_num_threads()
    edges = [len(hidden) * i // count for i in range(count + 1)]
    return [slice(start, stop) for start, stop in pairwise(edges)]


def _logits_by_chunk(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, share: slice, chunk_size: int, temperature: float
) -> Iterator[tuple[slice, Tensor]]:
    """Rows and wide logits of each chunk of a share, the caller's to overwrite."""
    n = share.stop - share.start
    size = math.ceil(n / max(1, math.ceil(n / chunk_size)))
    for start in range(share.start, share.stop, max(1, size)):
        rows = slice(start, min(start + size, share.stop))
        logits = product(hidden[rows], weight.t())
        if bias is not None:
            logits.add_(bias)
        logits = logits.to(wide(logits.dtype))
        yield rows, logits if temperature == 1.0 else logits.div_(temperature)
        del logits


def _exponentiate_(logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Turns logits into e in place; returns (n,) log-probs of the tokens and (n, 1) sums s."""
    target = logits.gather(1, tokens[:, None])
    peak, total = torch.empty_like(target), torch.empty_like(target)
    size = max(1, _CACHED // logits.shape[1]) if logits.device.type == "cpu" else max(1, len(logits))
    for start in range(0, len(logits), size):
        rows = slice(start, start + size)
        peak[rows] = logits[rows].amax(dim=1, keepdim=True)
        total[rows] = logits[rows].sub_(peak[rows]).exp_().sum(dim=1, keepdim=True)
    return (target - peak - total.log())[:, 0], total


def _residual_(exponentials: Tensor, tokens: Tensor, total: Tensor) -> Tensor:
    """Turns e into e - s 1_t in place."""
    return exponentials.scatter_add_(1, tokens[:, None], -total)


def _entropy(logprobs: Tensor) -> Tensor:
    """(n, V) log-probs to (n,) entropies."""
    return -(logprobs.exp() * logprobs).sum(dim=1)


def _slope(logprobs: Tensor, tokens: Tensor, grad: Tensor, grad_entropy: Tensor) -> Tensor:
    """Gradient of the logits: ``g (1_t - p) - g_H p (log p + H)``."""
    entropy = _entropy(logprobs)[:, None]
    slope = logprobs.exp().mul_(-grad - grad_entropy * (logprobs + entropy))
    return slope.scatter_add_(1, tokens[:, None], grad)


def _total(gradients: Sequence[Tensor | None]) -> Tensor | None:
    given = [gradient for gradient in gradients if gradient is not None]
    return reduce(Tensor.add_, given) if given else None


def _add_product(total: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """``total + a b``."""
    return product(a, b) if total is None else product_onto(total, a, b)
