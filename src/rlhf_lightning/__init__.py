"""RLHF you can understand, change and scale, on PyTorch Lightning."""

from typing import TYPE_CHECKING, Any

from rlhf_lightning._version import __version__

if TYPE_CHECKING:
    from rlhf_lightning.registry import register

__all__ = ["__version__", "register"]


def __getattr__(name: str) -> Any:
    """Imports the registry, and torch with it, when it is asked for: ``rlhf`` has something to do before."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from rlhf_lightning import registry

    return getattr(registry, name)
