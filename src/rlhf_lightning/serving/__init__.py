"""A reward model behind HTTP."""

from rlhf_lightning.serving.job import ServeRM

__all__ = ["ServeRM"]
