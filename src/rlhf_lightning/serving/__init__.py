"""Models behind HTTP: reward models that score, policies that are sampled from."""

from rlhf_lightning.serving.job import ServeRM
from rlhf_lightning.serving.policy_job import ServePolicy

__all__ = ["ServePolicy", "ServeRM"]
