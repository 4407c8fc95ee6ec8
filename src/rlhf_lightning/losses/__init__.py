"""Policy losses: the surrogate objective, a token at a time."""

from rlhf_lightning.losses.clip import Clip

__all__ = ["Clip"]
