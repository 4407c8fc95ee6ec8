"""A policy beside a frozen reference: what both say of a whole rollout, without gradient."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from rlhf_lightning import ranks
from rlhf_lightning.data.update_batches import rows_of_updates
from rlhf_lightning.functional import masked_mean
from rlhf_lightning.holdings import POLICY, REFERENCE, Forward, HeldModel
from rlhf_lightning.models.lora import adapters_off
from rlhf_lightning.models.prepare import frozen, frozen_copy
from rlhf_lightning.models.rollout_logprobs import Rows, rollout_entropy, rollout_logprobs
from rlhf_lightning.modules._learning import LearningModule
from rlhf_lightning.modules.sharing import computes_narrow
from rlhf_lightning.protocols import ModelSource
from rlhf_lightning.types import Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class ReferredModule(LearningModule):
    """A policy that is held to a reference: of its own source, its own start, or itself with its adapters off.

    Attributes:
        reference_source: Where the reference comes from; None is the policy's own start.
        measure_entropy: Whether the exact entropy of each rollout is wanted.
        reference: The model, once it is loaded; None without a KL term, and where it is the policy without adapters.
    """

    reference_source: ModelSource | None
    measure_entropy: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.reference: PreTrainedModel | None = None

    def load_frozen(self) -> None:
        """The reference: of its own source, or the policy as it is before the first update."""
        if self.kl.given and self.reference_source is not None:
            self.reference = frozen(self.reference_source.load(), float32_logits=self.float32_logits)
        elif self.kl.given and self.lora is None:
            self.reference = frozen_copy(self.model)

    def held_models(self) -> tuple[HeldModel, ...]:
        """The policy, and a reference where one is loaded."""
        held = super().held_models()
        if self.kl.given and self.reference_source is not None:
            return (*held, HeldModel(REFERENCE, self.reference_source))
        copied = HeldModel(REFERENCE, self.policy_source, dtype=self._dtype_of(self.policy_source))
        return (*held, *([copied] if self.kl.given and self.lora is None else []))

    def forwards(self) -> tuple[Forward, ...]:
        """What is computed of a rollout beside its scores."""
        held = {held.role for held in self.held_models()}
        wanted = [Forward("reference", REFERENCE if REFERENCE in held else POLICY, True)] if self.kl.given else []
        return (*wanted, *([Forward("entropy", POLICY, True)] if self.measure_entropy else []))

    def models(self) -> dict[str, nn.Module]:
        """The policy and the reference."""
        return super().models() | ({} if self.reference is None else {"reference": self.reference})

    def _entropy(self, rollout: Rollout) -> dict[str, float]:
        if not self.measure_entropy:
            return {}
        settings = {"token_budget": self.plan.token_budget, "chunk_size": self.logits_chunk}
        with self.events.phase("entropy"):
            found = self.without_training(partial(rollout_entropy, self.model, rollout, **settings))
        return {"policy/entropy": float(masked_mean(found, rollout.mask))}

    def _policy_logprobs(self, rollout: Rollout) -> Tensor:
        return self._logprobs(self.model, rollout, self.update_rows(rollout))

    def _reference_logprobs(self, rollout: Rollout) -> Tensor:
        rows = self.update_rows(rollout) if computes_narrow(self.trainer, self.model) else None
        if self.reference is None:
            with adapters_off(self.model):
                return self._logprobs(self.model, rollout, rows)
        return self._logprobs(self.reference, rollout, rows)

    def _logprobs(self, model: PreTrainedModel, rollout: Rollout, rows: Rows | None) -> Tensor:
        """At the precision that training steps run at, and in their rows: else a ratio of 1 would not be 1."""
        settings = {"token_budget": self.plan.token_budget, "chunk_size": self.logits_chunk, "rows": rows}
        return self.without_training(partial(rollout_logprobs, model, rollout, **settings))  # type: ignore[arg-type]

    def update_rows(self, rollout: Rollout) -> Rows:
        """The packed rows of all updates on a rollout, in order, so that each rank has those that it will train on."""
        return [row for update in rows_of_updates(rollout, **self.cutting)[1] for row in update]

    @property
    def cutting(self) -> dict[str, Any]:
        """How a rollout is cut into updates and rows."""
        updates, budget = self.plan.updates_per_rollout, self.plan.token_budget
        return {"updates": updates, "token_budget": budget, "shared_by": ranks.world_size()}
