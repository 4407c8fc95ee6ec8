"""How Lightning and callbacks have a module evaluated on held-out prompts."""

from __future__ import annotations

from typing import Any

from rlhf_lightning.modules.generator import Generator
from rlhf_lightning.protocols import Scorer

_Mixed: Any = object
"""A LightningModule by the time that its methods are called."""


class EvaluationHooks(_Mixed):
    """Greedy accuracy by a module's generator; modules without one measure something else, or nothing.

    Attributes:
        generator: The model under ``policy`` with its sampler, for modules that generate or are evaluated by it.
    """

    generator: Generator | None

    @property
    def data(self) -> Any:
        """The run's data."""
        return self.trainer.datamodule  # type: ignore[attr-defined]

    @property
    def tokenizer(self) -> Any:
        """The model's, after the preflight."""
        return None if self.generator is None else self.generator.tokenizer

    @property
    def proxy(self) -> Scorer | None:
        """What the model is trained on in the verifier's place; None where the verifier is all there is."""
        return None

    def measure(self, limit: int | None = None) -> dict[str, float]:
        """Metrics on the first ``limit`` held-out items, or on all: greedy accuracy, where there is a generator."""
        return {} if self.generator is None else self._evaluated(self.data.held_out_prompts()[:limit])

    def measure_samples(self, limit: int | None = None, **asked: Any) -> dict[str, float]:
        """What several samples per held-out prompt are worth; arguments as of ``Generator.evaluate_samples``."""
        if self.generator is None:
            return {}
        prompts = self.data.held_out_prompts()[:limit]
        return self.generator.evaluate_samples(self.policy, prompts, self.global_step, self.proxy, **asked)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Greedy accuracy on a batch of held-out prompts."""
        self.log_dict(self._evaluated(batch), batch_size=len(batch))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """As in validation."""
        self.validation_step(batch, batch_idx)

    def predict_step(self, batch: Any, batch_idx: int) -> list[dict[str, str]]:
        """Greedy responses to a batch of prompts."""
        assert self.generator is not None
        return self.generator.respond(self.policy, batch, self.global_step)

    def _evaluated(self, prompts: Any) -> dict[str, float]:
        assert self.generator is not None
        return self.generator.evaluate(self.policy, prompts, self.global_step, self.proxy)
