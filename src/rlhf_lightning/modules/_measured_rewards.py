"""How a reward model is measured on held-out groups, while it trains and by ``validate`` and ``test``."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from rlhf_lightning.algorithms.reward_metrics import RewardMetrics
from rlhf_lightning.models.scoring import score_groups
from rlhf_lightning.modules._reward_parts import samples_of
from rlhf_lightning.modules.epoch import EpochModule
from rlhf_lightning.reward_types import RenderedGroup, ResponseScore

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SAMPLES = 8
"""Held-out responses that are kept to read."""


class MeasuredRewards(EpochModule):
    """A module around one model with a scalar head, which scores held-out groups.

    Attributes:
        token_budget: Most tokens of a packed row.
    """

    token_budget: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._gathered = RewardMetrics()

    @property
    @abstractmethod
    def model(self) -> PreTrainedModel:
        """Backbone and head, once they are loaded."""

    @property
    @abstractmethod
    def is_process(self) -> bool:
        """Whether the steps' scores mean anything."""

    def scores(self, groups: Sequence[RenderedGroup]) -> list[list[ResponseScore]]:
        """What the model, as it is now, says of each response; at the precision that training steps run at."""
        settings: dict[str, Any] = {"process": self.is_process, "token_budget": self.token_budget}
        return self.without_training(partial(score_groups, self.model, groups, **settings))

    def measure(self, limit: int | None = None) -> dict[str, float]:
        """Metrics on the first ``limit`` held-out groups; some of them are kept as samples."""
        groups, metrics = self.data.held_out_groups()[:limit], RewardMetrics()
        with self.events.phase("evaluate"):
            scores = self.scores(groups)
        metrics.update(groups, scores)
        self.rollout_samples = samples_of(groups[:_SAMPLES], scores)
        return metrics.compute()

    def validation_step(self, batch: list[RenderedGroup], batch_idx: int) -> None:
        """Gathers the scores of held-out groups."""
        self._gathered.update(batch, self.scores(batch))

    def on_validation_epoch_end(self) -> None:
        """Logs the metrics of all that was gathered."""
        self.log_dict(self._gathered.compute())
        self._gathered = RewardMetrics()

    def test_step(self, batch: list[RenderedGroup], batch_idx: int) -> None:
        """As in validation."""
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """As in validation."""
        self.on_validation_epoch_end()
