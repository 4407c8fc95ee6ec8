"""A small random model of a configuration: the same class, the same kinds of layers, all sizes shrunk.

It shows in moments, before any weights are loaded, what an architecture does. Configurations share no schema, so sizes
are known by their names; what this gets wrong shows as a model that can't be made or run, never as a wrong answer.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

WIDTH, HEADS, DIM, LAYERS, WINDOW, EXPERTS = 64, 4, 16, 6, 4, 8
LAYER_COUNTS = (
    *("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_blocks", "num_layers_per_stack"),
    *("decoder_layers", "encoder_layers", "num_decoder_layers", "num_encoder_layers"),
)
MOST: tuple[tuple[int, str], ...] = (
    (2 * WIDTH, r"\w*vocab\w*"),
    (1, r"topk_group"),
    (2, r"num_experts_per_tok(en)?|moe_top_?k|moe_k|top_k_experts|index_topk_blocks|n_group|mamba_n_groups|n_groups"),
    (HEADS, r"\w*heads|n_head|num_query_groups|num_attention_heads_per_layer"),
    (WINDOW, r"\w*window\w*|attention_chunk_size|local_attention|index_topk|\w*chunk_length|(index_)?block_size"),
    (EXPERTS, r"(\w*_)?num_(\w*_)?experts|n_routed_experts|zero_expert_num"),
    (DIM, r"\w*head_?dim|\w*d_head|\w*head_size|kv_channels|dim_head|rotary_dim|\w*rank|\w*per_layer_input|d_rel"),
    (DIM, r"\w*d_state|\w*state_size|(mamba_)?chunk_size|router_hidden_size"),
    (WIDTH, r"hidden_size|n_embd|d_model|(\w+_)?emb(ed)?_dim|\w*embedding_(size|dim)|word_embed_proj_dim"),
    (2 * WIDTH, r"lru_width|\w*intermediate_size\w*|\w*ffn_(dim|hidden_size)|n_inner|d_inner|dff|dim_ff|d_ff"),
    (2 * WIDTH, r"feed_forward_size|mamba_d_ssm|\w*moe\w*size"),
)
"""The most that a number of such a name becomes."""


def small_config(config: PretrainedConfig) -> PretrainedConfig:
    """A copy of a configuration with layers of each kind, few of them, and few and narrow heads and experts.

    What acts over a distance (windows, chunks) acts over a few tokens, so that a short sequence shows it.
    """
    small = copy.deepcopy(config)
    for part in {id(part): part for part in (small, *parts_of(small))}.values():
        _shrink(part)
    return small


def small_model(cls: Any, config: PretrainedConfig) -> PreTrainedModel:
    """A model of the class and :func:`small_config`, its weights drawn anew so wide that each part of it matters.

    Draws nothing from the caller's random numbers. Float32, on CPU, in evaluation mode.
    """
    text = config.get_text_config()
    config = text if cls.config_class is type(text) else config  # as transformers' own classes by configuration do
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(0)
        model: PreTrainedModel = cls._from_config(small_config(config), dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                _widen(parameter)
    return model.eval()


def _widen(parameter: torch.nn.Parameter) -> None:
    """Matrices to a variance that keeps that of their input, biases off 0; what is no such noise stays."""
    if parameter.ndim >= 2 and float(parameter.mean().abs()) <= 0.5 * float(parameter.std()) + 1e-9:
        parameter.normal_(std=1.5 * parameter[0].numel() ** -0.5)
    elif parameter.ndim == 1 and not parameter.any():
        parameter.normal_(std=0.1)


def parts_of(config: Any) -> Iterator[Any]:
    """Configurations inside a configuration."""
    for value in vars(config).values():
        if hasattr(value, "to_diff_dict"):
            yield value
            yield from parts_of(value)


def _shrink(config: Any) -> None:
    values = vars(config)
    heads, width = values.get("num_attention_heads"), values.get("hidden_size")
    _pick_layers(config)
    for name, value in list(values.items()):
        if name.startswith("_") or isinstance(value, bool):
            continue
        if isinstance(value, float) and re.search(r"drop|jitter", name):
            _put(config, name, 0.0)
        elif re.fullmatch(r"\w*token_(id|index)", name):
            _put(config, name, _at_most(value, 2 * WIDTH - 1))
        elif re.fullmatch(r"(swa_)?num_(key_value|kv)_heads", name) and isinstance(value, int):
            _put(config, name, 1 if value == 1 else min(value, HEADS if value == heads else HEADS // 2))
        else:
            most = next((most for most, names in MOST if re.fullmatch(names, name)), None)
            _put(config, name, value if most is None else _at_most(value, most))
    if values.get("output_router_logits"):
        _put(config, "output_router_logits", False)
    if values.get("attention_hidden_size"):
        _put(config, "attention_hidden_size", values["attention_hidden_size"] * WIDTH // (width or WIDTH))
    _fit_state_heads(values)


def _fit_state_heads(values: dict[str, Any]) -> None:
    """State-space heads must fill their layer's inner width."""
    heads = next((n for n in ("mamba_n_heads", "n_mamba_heads", "mamba_num_heads", "num_heads") if n in values), None)
    dims = [values.get(name) for name in ("mamba_d_head", "mamba_headdim", "mamba_head_dim", "head_dim")]
    expand = values.get("mamba_expand", values.get("expand"))
    dim = next((dim for dim in dims if isinstance(dim, int)), None)
    if heads and dim and expand:
        values[heads] = int(values.get("mamba_d_ssm") or expand * WIDTH) // dim


def _at_most(value: Any, most: int) -> Any:
    """A number, or the numbers of a list or mapping, cut off there; what is no number stays."""
    if isinstance(value, Mapping):
        return {key: _at_most(part, most) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_at_most(part, most) for part in value)
    return min(value, most) if isinstance(value, int) and not isinstance(value, bool) else value


def _put(config: Any, name: str, value: Any) -> None:
    if value is not vars(config)[name]:
        setattr(config, name, value)


def _pick_layers(config: Any) -> None:
    """Keeps two layers of each kind that lists by layer tell apart; the first ones where there are no such lists."""
    counts = [name for name in LAYER_COUNTS if isinstance(vars(config).get(name), int)]
    if not counts:
        return
    count = vars(config)[counts[0]]
    listed = {
        name: value
        for name, value in vars(config).items()
        if isinstance(value, list | tuple | str) and len(value) == count > 3 and not name.startswith("_")
    }
    kinds: dict[tuple[str, ...], list[int]] = {}
    for i in range(count):
        kinds.setdefault(tuple(str(value[i]) for value in listed.values()), []).append(i)
    first, second = ([of[n] for of in kinds.values() if len(of) > n] for n in (0, 1))
    picks = sorted((first + second)[:LAYERS]) if listed else list(range(min(count, LAYERS)))
    for name, value in listed.items():
        own = [value[i] for i in picks]
        setattr(config, name, "".join(own) if isinstance(value, str) else type(value)(own))
    for name in counts:
        setattr(config, name, min(vars(config)[name], len(picks)))
