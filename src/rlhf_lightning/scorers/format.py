"""A score for the form of a response, whatever it says."""

from __future__ import annotations

import re

import torch

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.protocols import Scorer
from rlhf_lightning.registry import register
from rlhf_lightning.types import Rollout, Scores


@register("scorer", "format")
class FormatScorer(Scorer):
    """1 where the whole response matches a regular expression, else 0.

    Args:
        pattern: The expression; ``.`` matches line feeds too.
        label: Name under which the scores are logged.

    Raises:
        ConfigError: If ``pattern`` is no regular expression.
    """

    gives_steps = False

    def __init__(self, pattern: str, label: str = "format") -> None:
        self.name = label
        try:
            self.pattern = re.compile(pattern, re.DOTALL)
        except re.error as error:
            raise ConfigError(f"scorer {label}: pattern {pattern!r} is no regular expression: {error}") from error

    def __call__(self, rollout: Rollout) -> Scores:
        """(B,) zeros and ones."""
        values = torch.tensor([float(self.pattern.fullmatch(text) is not None) for text in rollout.texts])
        return Scores(values, {self.name: values}, torch.zeros(len(rollout.texts), dtype=torch.bool))
