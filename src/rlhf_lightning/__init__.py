"""RLHF you can understand, change and scale, on PyTorch Lightning."""

from rlhf_lightning._version import __version__
from rlhf_lightning.registry import register

__all__ = ["__version__", "register"]
