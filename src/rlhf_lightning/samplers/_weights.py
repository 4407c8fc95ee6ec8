"""The policy's weights as another engine loads them: transformers' names, adapters merged, one tensor at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.samplers.decoders._merge import base_layer, effective_weight, mergeable

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NamedTensors = Iterator[tuple[str, Tensor]]


def effective_weights(model: PreTrainedModel, *, adapters: bool = True) -> NamedTensors:
    """Parameters and persistent buffers under the names of the model without peft; a tied one once, at its first name.

    Nothing is held: a merged weight exists only until the next one is asked for, all others are the model's own.

    Args:
        model: A causal LM, possibly wrapped by peft.
        adapters: Whether low-rank adapters are added to the weights they adapt.

    Raises:
        ConfigError: If an adapter is no plain LoRA, or sits on an embedding that the LM head shares.
    """
    inner: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    if adapters:
        _check_mergeable(inner)
    seen: set[int] = set()
    inside: set[str] = set()
    for name, module in inner.named_modules():
        if any(name.startswith(f"{above}.") for above in inside):
            continue
        plain = base_layer(module)
        if plain is not module:
            inside.add(name)
        for own, tensor in _tensors(plain):
            if id(tensor) not in seen:
                seen.add(id(tensor))
                merged = adapters and own == "weight"
                yield f"{name}.{own}" if name else own, (effective_weight(module) if merged else tensor).detach()


def buckets(weights: NamedTensors, most_bytes: int) -> Iterator[dict[str, Tensor]]:
    """Weights in bundles of at most ``most_bytes`` (a larger one goes alone), copied to CPU."""
    bundle: dict[str, Tensor] = {}
    size = 0
    for name, tensor in weights:
        if bundle and size + tensor.nbytes > most_bytes:
            yield bundle
            bundle, size = {}, 0
        bundle[name] = tensor.cpu().contiguous()
        size += tensor.nbytes
    if bundle:
        yield bundle


def with_last(items: Iterable[Any]) -> Iterator[tuple[Any, bool]]:
    """Each item, and whether it is the last one."""
    walk = iter(items)
    for before in walk:
        for item in walk:
            yield before, False
            before = item
        yield before, True


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(recurse=False)
    hidden = module._non_persistent_buffers_set
    yield from ((name, buffer) for name, buffer in module.named_buffers(recurse=False) if name not in hidden)


def _check_mergeable(inner: Any) -> None:
    if not mergeable(inner):
        raise ConfigError("only plain LoRA adapters can be merged into the weights that a sampler gets")
    ends = inner.get_input_embeddings(), inner.get_output_embeddings()
    tied = None not in ends and base_layer(ends[0]).weight is base_layer(ends[1]).weight
    if tied and any(base_layer(end) is not end for end in ends):
        raise ConfigError(
            "an adapter sits on the embedding that the LM head shares, and the two would no longer be the same: leave "
            "the embedding and the head out of target_modules"
        )
