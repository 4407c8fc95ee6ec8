"""One update of a policy: its losses over a packed micro-batch, and the KL controllers that follow it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from rlhf_lightning.algorithms.kl import KLTerms
from rlhf_lightning.algorithms.metrics import Quantiles
from rlhf_lightning.border import checked_losses
from rlhf_lightning.functional import kl_k1, kl_k3
from rlhf_lightning.models.packed import packed_logprobs
from rlhf_lightning.modules._generating import GeneratingModule
from rlhf_lightning.modules.plan import BatchPlan
from rlhf_lightning.protocols import PolicyLoss
from rlhf_lightning.types import UpdateBatch

Trace = Callable[[str, Tensor], None]


def _unseen(name: str, values: Tensor) -> None:
    """Nobody looks."""


class LearningModule(GeneratingModule):
    """A policy that learns from packed micro-batches; where they come from is not known here.

    Attributes:
        plan: The batch arithmetic.
        policy_loss: Surrogate objective.
        kl: The KL penalties in reward and loss.
        logits_chunk: Tokens whose logits are held at once.
        trace: Is shown the (b, T) tensors of each micro-batch by name, in the order in which they are computed:
            ``logprobs``, ``values``, and the losses a token.
    """

    plan: BatchPlan
    policy_loss: PolicyLoss
    kl: KLTerms
    logits_chunk: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.trace: Trace = _unseen
        self.nonfinite: dict[str, Tensor | int] = {}
        self.ratios = Quantiles("ratio/", {"q01": 0.01, "q50": 0.5, "q99": 0.99})

    def training_step(self, batch: UpdateBatch, batch_idx: int) -> Tensor:
        """One packed micro-batch; the loss undoes what Lightning will divide by, so any split gives one gradient."""
        loss = self.update_loss(batch)
        self.events.advance(batch.tokens)
        return loss * self.loss_scale

    def update_loss(self, batch: UpdateBatch) -> Tensor:
        """The micro-batch's share of the update's loss."""
        flat = packed_logprobs(self.model, batch.packed, temperature=batch.temperature, chunk_size=self.logits_chunk)
        return self.objective(batch.packed.to_rows(flat), batch)

    def objective(self, new: Tensor, batch: UpdateBatch) -> Tensor:
        """Policy loss and KL loss, given (b, T) log-probs with gradient."""
        self.trace("logprobs", new)
        self._watch_ratios(new.detach(), batch)
        loss = self.weigh("loss/policy", self.policy_loss, self.policy_loss(new, batch), batch)
        if self.kl.loss is not None and batch.ref_logprobs is not None:
            loss = loss + self.weigh("loss/kl", self.kl.loss, (self.kl.loss(new, batch.ref_logprobs), {}), batch)
        return loss

    def weigh(self, name: str, part: object, given: Any, batch: UpdateBatch) -> Tensor:
        """Sums the (b, T) losses that a part gave with the batch's weights; logs the sum and the diagnostics' means.

        Raises:
            PartError: If losses or diagnostics are no tensors of that shape.
        """
        per_token, diagnostics = checked_losses(part, name, given, batch.packed.mask.shape)
        self.trace(name, per_token)
        odd = ~per_token.detach().isfinite() & batch.packed.mask
        self.nonfinite[name] = self.nonfinite.get(name, 0) + odd.sum()
        loss = (per_token * batch.weights).sum()
        self.means.sums({name: loss})
        self.means.over_tokens(diagnostics, batch.packed.mask)
        return loss

    def suspects(self) -> str:
        """Which losses of the update that is on were not finite."""
        found, self.nonfinite = {name: int(count) for name, count in self.nonfinite.items()}, {}
        return ", ".join(f"{name} was not finite on {count} tokens" for name, count in found.items() if count)

    def _watch_ratios(self, new: Tensor, batch: UpdateBatch) -> None:
        """The tokens' ratios, and how far the policy has moved from the one that drew them: KL(old ‖ new)."""
        old, mask = batch.old_logprobs, batch.packed.mask
        self.ratios.add((new - old)[mask].exp())
        self.means.over_tokens({"kl/old_k1_per_token": kl_k1(old, new), "kl/old_k3_per_token": kl_k3(old, new)}, mask)

    def epoch_means(self) -> dict[str, float]:
        """As for every module, with the ratios' quantiles."""
        return {**super().epoch_means(), **self.ratios.pop()}

    def on_train_epoch_end(self) -> None:
        """The rollout is done: controllers see its KL, and the next one begins."""
        self.kl.see(self.rollout_metrics.get("kl/ref_k1_per_sequence"), self.plan.samples_per_rollout)
        super().on_train_epoch_end()

    def controllers(self) -> dict[str, Any]:
        """The KL controllers."""
        return dict(self.kl.controllers())
