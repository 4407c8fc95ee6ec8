"""Which way a model's training forward goes (``models.ways``): the quickest that is its plain forward.

No list of architectures says so: a small random model of the same configuration (``models.small``) is tried, packed and
padded, against plain forwards of single sequences, gradients too. The first way that agrees is the model's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional.packing import pack_groups
from rlhf_lightning.models.layers import causal_lm
from rlhf_lightning.models.padded import plain_arguments
from rlhf_lightning.models.repeatable import without_noise
from rlhf_lightning.models.small import parts_of, small_model
from rlhf_lightning.models.ways import Way
from rlhf_lightning.types import PackedSequences

TOLERANCE = 1e-3
"""Nats a token, and share of a gradient's norm, that rounding may make."""

_KEPT = "_rlhf_way"
_KNOWN: dict[tuple[type, str], Way] = {}
_EXTRAS: tuple[tuple[str, ...], ...] = ((), ("token_type_ids",), ("mm_token_type_ids",))
"""Arguments some models want in training, though all is text."""


def way_of(model: Any) -> Way:
    """The model's way, chosen when first asked for, by its class and configuration alone.

    Raises:
        ConfigError: As :func:`choose_way`.
    """
    inner: Any = causal_lm(model)
    kept: Way | None = getattr(inner, _KEPT, None)
    if kept is None:
        kept = _of_configuration(inner)
        keep_way(inner, kept)
    return kept


def keep_way(model: Any, way: Way) -> None:
    """Makes a way the model's."""
    causal_lm(model).__dict__[_KEPT] = way


def _of_configuration(inner: Any) -> Way:
    cls = class_of(inner)
    key = cls, configuration_key(inner.config)
    if key not in _KNOWN:
        try:
            small = small_model(cls, inner.config)
            with torch.no_grad():
                _plain_logits(small, torch.tensor([[3, 5, 7]]))
        except Exception as error:
            because = f"no small {cls.__name__} can be made to try packing with ({_short(error)})"
            _KNOWN[key] = Way(packed=False, equal=True, whole=True, because=because)
        else:
            _KNOWN[key] = choose_way(without_noise(small).train())
    return replace(_KNOWN[key], same_up_to=_same_up_to(inner.config))


def choose_way(model: Any) -> Way:
    """Tries the ways on a model, from the quickest to the plainest; the first that is its plain forward is taken.

    Args:
        model: Any causal LM with weights, or one with a scalar head, in a mode without randomness.

    Raises:
        ConfigError: If no way is, or its tokens see those that come after them.
    """
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        return _chosen(model)


def _chosen(model: Any) -> Way:
    inner = causal_lm(model)
    trial = _Trial.of(model)
    plain = Way(packed=False, equal=True, extras=trial.extras)
    whole = False
    if inner.get_output_embeddings() is not None:
        heads = (plain, replace(plain, own_head=True), replace(plain, whole=True))
        plain = next((way for way in heads if trial.differs(model, way, gradient=False) is None), heads[-1])
        whole = plain.whole
    because = "its backbone and head cannot be told apart" if whole else ""
    if not whole:
        packed = replace(plain, packed=True, equal=False)
        with _attention_restored(inner) as keep:
            differs = trial.differs(model, packed)
            if differs is None:
                keep()
                return packed
        because = f"packed, {type(inner).__name__} {differs}"
    for way in (replace(plain, equal=False), plain):
        differs = trial.differs(model, way)
        if differs is None:
            return replace(way, because=because)
    raise ConfigError(f"{type(inner).__name__}: two forwards of the same tokens are not the same; it {differs}")


@contextmanager
def _attention_restored(inner: Any) -> Iterator[Callable[[], None]]:
    """After the context attention is what it was, unless the function given was called."""
    parts = {id(part): part for part in (inner.config, inner.config.get_text_config(), *parts_of(inner.config))}
    before = [(part, part._attn_implementation) for part in parts.values()]
    yield before.clear
    for part, implementation in before:
        part._attn_implementation_internal = implementation


@dataclass(frozen=True)
class _Trial:
    """A row, and what plain forwards of its sequences say of it."""

    packed: PackedSequences
    extras: tuple[str, ...]
    want: Tensor
    gradient: Tensor | None

    @classmethod
    def of(cls, model: Any) -> _Trial:
        inner: Any = causal_lm(model)
        ends = filter(None, (inner.get_input_embeddings(), inner.get_output_embeddings()))
        count = min(int(end.weight.shape[0]) for end in ends)  # moshi's embeddings have a row that its head has not
        prompts = [[(7 * i + 3) % (count - 3) + 3 for i in range(n)] for n in (3, 6)]
        drawn = torch.randint(3, count, (4, 7), generator=torch.Generator().manual_seed(0))
        mask = torch.arange(7) < torch.tensor([[7], [2], [5], [1]])
        packed = pack_groups(prompts, drawn.to(inner.device), mask.to(inner.device))
        extras = _needed(inner, packed.input_ids[None, :4])
        plain = replace(Way(packed=False, equal=True, whole=inner.get_output_embeddings() is not None), extras=extras)
        _check_causal(inner, extras)
        return cls(packed, extras, *_said(model, packed, plain))

    def differs(self, model: Any, way: Way, *, gradient: bool = True) -> str | None:
        """How a way's numbers are not those of plain forwards; None if they are."""
        try:
            got, own = _said(model, self.packed, way, gradient=gradient)
        except Exception as error:
            return f"fails: {_short(error)}"
        most = max(TOLERANCE, 50 * torch.finfo(causal_lm(model).dtype).eps)
        worst = float((got - self.want).detach().abs().max())
        if not worst <= most:
            return f"differs from its plain forward by {worst:.2g} nats a token"
        if self.gradient is None or not gradient:
            return None
        far = float((own - self.gradient).norm() / self.gradient.norm().clamp(min=1e-9)) if own is not None else 1.0
        return None if far <= most else f"has another gradient than its plain forward (by {far:.2g} of its norm)"


def _said(model: Any, packed: PackedSequences, way: Way, *, gradient: bool = True) -> tuple[Tensor, Tensor | None]:
    """Log-probs, or states where there is no LM head, and the gradient of the input embeddings."""
    inner = causal_lm(model)
    if inner.get_output_embeddings() is None:
        found = way.states(model, packed, packed.predict_index).float()
    else:
        found = way.logprobs(model, packed, None, temperature=1.0, chunk_size=8)[0]
    weight: Any = inner.get_input_embeddings().weight
    if not (gradient and weight.requires_grad):
        return found, None
    factors = torch.linspace(0.5, 1.5, found.numel(), device=found.device).view_as(found)
    return found, torch.autograd.grad((found * factors).sum(), weight, allow_unused=True)[0]


def _needed(inner: Any, ids: Tensor) -> tuple[str, ...]:
    """The arguments without which it has no training forward."""
    for extras in _EXTRAS:
        try:
            _plain_logits(inner, ids, extras)
        except ValueError:
            continue
        return extras
    return ()


@torch.no_grad()
def _check_causal(inner: Any, extras: tuple[str, ...]) -> None:
    if inner.get_output_embeddings() is None:
        return
    ids = torch.tensor([[3, 5, 4, 6, 3, 5]], device=inner.device)
    after = ids.index_fill(1, torch.tensor([5], device=inner.device), 4), ids[:, :-1]  # another last token, and none
    one, *others = (_plain_logits(inner, x, extras)[:, :5] for x in (ids, *after))
    seen = max(float((one - other).abs().max()) for other in others)
    if seen > 0.01 * float(one.std()):
        raise ConfigError(
            f"{type(inner).__name__} as configured lets a token see those after it, or whether there are any, so it "
            "has no probabilities of what it draws: it is no causal language model (is_decoder: true in its "
            "config.json makes some of these one)"
        )


def _plain_logits(inner: Any, ids: Tensor, extras: tuple[str, ...] = ()) -> Tensor:
    output = type(inner).forward(inner, **plain_arguments(inner, ids, None, extras))
    return output.logits if hasattr(output, "logits") else output[0]  # type: ignore[no-any-return]


def class_of(inner: Any) -> Any:
    """The class to try: the configuration's causal LM in place of a scalar model, the plain one under a wrapper."""
    from transformers import AutoModelForCausalLM

    module = getattr(inner, "_fsdp_wrapped_module", inner)
    plain = next(cls for cls in type(module).__mro__ if cls.__module__.startswith(("transformers", module.__module__)))
    if module.get_output_embeddings() is None and type(module.config) in AutoModelForCausalLM._model_mapping:
        return AutoModelForCausalLM._model_mapping[type(module.config)]
    return plain


def configuration_key(config: Any) -> str:
    """A text that is the same for configurations of the same computation."""
    volatile = (
        "_name_or_path",
        "dtype",
        "torch_dtype",
        "architectures",
        "transformers_version",
        "_attn_implementation",
    )
    values = {name: value for name, value in config.to_dict().items() if name not in volatile}
    return json.dumps(values, sort_keys=True, default=str)


def _same_up_to(config: Any) -> int | None:
    """Tokens up to which rotary frequencies stay, where they change with the longest sequence of a call."""
    config = config.get_text_config()
    given = getattr(config, "rope_parameters", None) or {}
    ropes = [given, *(part for part in given.values() if isinstance(part, dict))]
    limits = [
        rope.get("original_max_position_embeddings")
        or getattr(config, "original_max_position_embeddings", None)
        or config.max_position_embeddings
        for rope in ropes
        if rope.get("rope_type") in ("dynamic", "longrope")
    ]
    return min(limits, default=None)


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 140 else f"{text[:137]}..."
