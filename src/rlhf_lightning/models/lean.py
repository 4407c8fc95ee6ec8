"""The Llama family's modules in fewer passes over memory, for training on CPU: the same up to rounding.

With x a row, g the gradient from above and s(a) = a·sigmoid(a), beside the norm of ``models.lean_norm``:

    MLP       y = W (s(a) u),   a = gate(x),   u = up(x)
              dh = Wᵀ g,   du = dh s(a),   da = dh u s'(a),   dW = g (s(a) u)ᵀ
    linear    y = W x + b:   dx = Wᵀ g,   dW = g xᵀ,   by the quicker library (``functional._products``)

and over a packed row whole decoder layers (``models.lean_layer``).

What transformers' own code keeps for backward beside the inputs (the normed row twice, s(a) and s(a) u) is computed
again from them: that is quicker than writing it out and reading it back, and a third of a layer's activations.

Only module classes that are known to compute just this are touched, and only calls on plain CPU tensors of one type:
under autocast, on other devices, on sharded weights or where an adapter or a hook sits, the module's own forward runs.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rlhf_lightning.functional._products import ordinary, product, products_kind, weight_gradient
from rlhf_lightning.models.attention_layout import AttentionLayout
from rlhf_lightning.models.block_attention import Heads
from rlhf_lightning.models.lean_layer import DecoderLayer, Setting
from rlhf_lightning.models.lean_norm import RMSNorm
from rlhf_lightning.models.row_parts import row_parts

NORMS = frozenset({"LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm"})
MLPS = frozenset({"LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP"})
LAYERS = frozenset({"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer"})
"""Classes of transformers by name, so that none needs importing."""

WORTH_PARTS = 1 << 26
"""Multiplications of a layer from which threads of their own for the parts of a row are worth waking."""


def make_lean(model: nn.Module) -> nn.Module:
    """Gives the known modules of a model their lean forward, in place; calling it again changes nothing.

    Args:
        model: Any transformers model, before or after adapters are put in.
    """
    for module in model.modules():
        name = type(module).__name__
        if name in NORMS:
            module.forward = partial(norm_forward, module)
        elif name in MLPS and _is_silu(module.act_fn):
            module.forward = partial(mlp_forward, module)
        elif name in LAYERS and _is_silu(module.mlp.act_fn):  # type: ignore[union-attr]
            module.forward = partial(layer_forward, module)
        elif type(module) is nn.Linear:
            module.forward = partial(linear_forward, module)  # type: ignore[method-assign]
    return model


def norm_forward(module: Any, hidden_states: Tensor) -> Tensor:
    """(..., H) to (..., H)."""
    if not ordinary(hidden_states, module.weight):
        return type(module).forward(module, hidden_states)  # type: ignore[no-any-return]
    return RMSNorm.apply(hidden_states, module.weight, module.variance_epsilon)  # type: ignore[no-any-return,no-untyped-call]


def mlp_forward(module: Any, x: Tensor) -> Tensor:
    """(..., H) to (..., H)."""
    down = module.down_proj
    if type(down) is not nn.Linear or down.bias is not None or not ordinary(x, down.weight):
        return type(module).forward(module, x)  # type: ignore[no-any-return]
    gate, up = _rows(module.gate_proj(x)), _rows(module.up_proj(x))
    out: Tensor = GatedDown.apply(gate, up, down.weight)  # type: ignore[no-untyped-call]
    return out.view(*x.shape[:-1], -1)


def linear_forward(module: Any, x: Tensor) -> Tensor:
    """(..., K) to (..., N)."""
    if x.dtype != torch.float32 or x.numel() == 0 or not ordinary(x, module.weight):
        return F.linear(x, module.weight, module.bias)
    # Shaped outside of the function: autograd lets nobody write into a view that a function of ours made.
    out: Tensor = Linear.apply(_rows(x), module.weight, module.bias)  # type: ignore[no-untyped-call]
    return out.view(*x.shape[:-1], -1)


def layer_forward(module: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """(1, N, H) of a packed row to the same, or (1, K, H) of the tokens wanted where the layer is its model's last.

    Other calls go to the module's own forward.
    """
    layout: Any = kwargs.get("packed_layout")
    weights = None if args or layout is None else _weights_of(module, hidden_states)
    if weights is None:
        return type(module).forward(module, hidden_states, *args, **kwargs)  # type: ignore[no-any-return]
    attention, of_query, of_key = module.self_attn, weights[1], weights[2]
    assert of_query is not None
    assert of_key is not None
    dim: int = attention.head_dim
    heads = Heads(len(of_query) // dim, len(of_key) // dim, dim, attention.scaling)
    parts = row_parts(layout, _parts_worth(module, layout), wanted=_is_last(attention))
    setting = Setting(heads, parts, module.input_layernorm.variance_epsilon)
    rotation = _rotation_once(layout, *kwargs["position_embeddings"])
    return DecoderLayer.apply(hidden_states[0], rotation, setting, *weights)[None]  # type: ignore[no-any-return,no-untyped-call]


def _is_last(attention: Any) -> bool:
    return bool(attention.layer_idx == attention.config.num_hidden_layers - 1)


def _parts_worth(module: Any, layout: AttentionLayout) -> int:
    """In how many parts a row is worth computing."""
    work = len(layout.scatter) * sum(weight.numel() for weight in module.parameters())
    if work < WORTH_PARTS:
        return 1
    products_kind()  # measured before threads share it
    return torch.get_num_threads()


def _rotation_once(layout: AttentionLayout, cos: Tensor, sin: Tensor) -> Tensor:
    """That of the row, made by the first layer and kept with the row's layout for the others."""
    known: dict[str, tuple[Tensor, Tensor]] = layout.__dict__
    if "_rotation" not in known or known["_rotation"][0] is not cos:
        known["_rotation"] = cos, _rotation(cos, sin)
    return known["_rotation"][1]


def _rotation(cos: Tensor, sin: Tensor) -> Tensor:
    """(N, D/2) complex from (1, N, D), whose halves are the same."""
    cos, sin = (x[0, :, : x.shape[-1] // 2].to(torch.promote_types(x.dtype, torch.float32)) for x in (cos, sin))
    return torch.complex(cos, sin)


def _weights_of(module: Any, x: Tensor) -> tuple[Tensor | None, ...] | None:
    """What ``DecoderLayer`` takes, or None where the layer has more to it than that."""
    attention, mlp = module.self_attn, module.mlp
    inputs = attention.q_proj, attention.k_proj, attention.v_proj
    others = attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj
    norms = module.input_layernorm, module.post_attention_layernorm
    window = getattr(attention, "sliding_window", None) or getattr(attention.config, "sliding_window", None)
    plain = all(type(linear) is nn.Linear for linear in (*inputs, *others))
    if window or not plain or any(_hooked(part) for part in (attention, mlp, *inputs, *others, *norms)):
        return None
    biases = [linear.bias for linear in inputs]
    all_or_none = all(bias is None for bias in biases) or all(bias is not None for bias in biases)
    weights = [part.weight for part in (*norms, *inputs, *others)]
    given = [bias for bias in biases if bias is not None]
    if not all_or_none or any(linear.bias is not None for linear in others) or not ordinary(x, *weights, *given):
        return None
    bias = torch.cat(given) if given else None
    norm1, norm2, wq, wk, wv, wo, *of_mlp = weights
    return norm1, wq, wk, wv, bias, wo, norm2, *of_mlp


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)


class GatedDown(torch.autograd.Function):
    """(N, I) gate and up to (N, H): ``W (silu(gate) · up)`` (Shazeer 2020, Eq. 6, without its first two products)."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, weight: Tensor) -> Tensor:
        """Saves gate and up, not their product."""
        ctx.save_for_backward(gate, up, weight)
        return product(F.silu(gate).mul_(up), weight.t())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Computes the product again for the gradient of W."""
        gate, up, weight = ctx.saved_tensors
        for_gate, for_up, for_weight = ctx.needs_input_grad
        grad = grads[0]
        active = F.silu(gate)
        d_gate = d_up = d_weight = None
        if for_gate or for_up:
            d_hidden = product(grad, weight)
            d_up = d_hidden * active if for_up else None
            d_gate = torch.ops.aten.silu_backward(d_hidden.mul_(up), gate) if for_gate else None
        if for_weight:
            d_weight = weight_gradient(grad, active.mul_(up))
        return d_gate, d_up, d_weight


class Linear(torch.autograd.Function):
    """(N, K) to (N, M): ``W x + b``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Saves x if the weight trains."""
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        out = product(x, weight.t())
        return out if bias is None else out.add_(bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Two products and a sum, as far as they are asked for."""
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        grad = grads[0]
        d_x = product(grad, weight) if for_x else None
        return d_x, weight_gradient(grad, x) if for_weight else None, grad.sum(dim=0) if for_bias else None


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _is_silu(activation: Any) -> bool:
    return isinstance(activation, nn.SiLU) or type(activation).__name__ == "SiLUActivation"
