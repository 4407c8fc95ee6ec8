"""Numbers that are gathered while a run goes on."""

from rlhf_lightning.metrics.means import Means

__all__ = ["Means"]
