"""A computation on a module's weights, run as that module's forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import nn

T = TypeVar("T")


def through(module: nn.Module, compute: Callable[..., T], *args: Any) -> T:
    """``compute(*args)``, with the module's hooks around it.

    Strategies that shard weights bring a module's parameters together in hooks around its forward, and again in
    backward, by way of the tensors that go in and come out. So whatever reads a module's weights without calling it
    goes through here. For a module without hooks it is the plain call.

    Args:
        module: Whose parameters ``compute`` reads: the root of a model for those that no layer of its own holds. Where
            the strategy put a wrapper in the module's place (FSDP 1), that wrapper: its hooks are the ones that count.
        compute: Gives tensors, or tuples of tensors.
        args: Tensors that need a gradient must stand here, not be caught by ``compute``.
    """
    with standing_in(module, compute):
        return module(*args)  # type: ignore[no-any-return]


@contextmanager
def standing_in(module: nn.Module, compute: Callable[..., Any]) -> Iterator[None]:
    """Inside the context a call of the module is ``compute``, its hooks around it."""
    module = getattr(module, "_fsdp_wrapped_module", module)
    own = module.__dict__.get("forward")
    module.__dict__["forward"] = compute
    try:
        yield
    finally:
        if own is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = own
