"""From a micro-batch to its loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from rlhf_lightning.algorithms.kl import KLTerms
from rlhf_lightning.algorithms.metrics import Quantiles
from rlhf_lightning.border import checked_losses
from rlhf_lightning.functional import kl_k1, kl_k3
from rlhf_lightning.models.packed import packed_logprobs
from rlhf_lightning.modules.batches import Loss
from rlhf_lightning.protocols import PolicyLoss
from rlhf_lightning.types import UpdateBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Updater:
    """A policy's losses over packed micro-batches, and what is counted of them over an epoch.

    Args:
        policy_loss: Surrogate objective.
        kl: The KL penalties; that in the loss is added here.
        logits_chunk: Tokens whose logits are held at once.
    """

    def __init__(self, policy_loss: PolicyLoss, kl: KLTerms, logits_chunk: int) -> None:
        self.policy_loss, self.kl, self.logits_chunk = policy_loss, kl, logits_chunk
        self._ratios = Quantiles("ratio/", {"q01": 0.01, "q50": 0.5, "q99": 0.99})
        self._nonfinite: dict[str, Tensor | int] = {}

    def __call__(self, model: PreTrainedModel, batch: UpdateBatch) -> Loss:
        """The micro-batch's share of the update's loss, after a forward of the policy."""
        flat = packed_logprobs(model, batch.packed, temperature=batch.temperature, chunk_size=self.logits_chunk)
        return self.objective(batch.packed.to_rows(flat), batch)

    def objective(self, new: Tensor, batch: UpdateBatch) -> Loss:
        """Policy loss and KL loss, given (b, T) log-probs with gradient."""
        old = batch.old_logprobs
        moved = {"kl/old_k1_per_token": kl_k1(old, new.detach()), "kl/old_k3_per_token": kl_k3(old, new.detach())}
        loss = weighed("loss/policy", self.policy_loss, self.policy_loss(new, batch), batch)
        loss = Loss(loss.total, loss.terms, {"logprobs": new, **loss.tokens}, {**moved, **loss.means}, loss.mask)
        if self.kl.loss is not None and batch.ref_logprobs is not None:
            loss += weighed("loss/kl", self.kl.loss, (self.kl.loss(new, batch.ref_logprobs), {}), batch)
        return loss

    def watch(self, loss: Loss, batch: UpdateBatch) -> None:
        """Counts, of a micro-batch that trains, its tokens' ratios and what is not finite."""
        mask = batch.packed.mask
        if "logprobs" in loss.tokens:
            self._ratios.add((loss.tokens["logprobs"].detach() - batch.old_logprobs)[mask].exp())
        for name in loss.terms:
            odd = ~loss.tokens[name].detach().isfinite() & mask
            self._nonfinite[name] = self._nonfinite.get(name, 0) + odd.sum()

    def pop_suspects(self) -> str:
        """Which losses were not finite since this was asked last."""
        found, self._nonfinite = {name: int(count) for name, count in self._nonfinite.items()}, {}
        return ", ".join(f"{name} was not finite on {count} tokens" for name, count in found.items() if count)

    def pop_ratios(self) -> dict[str, float]:
        """Quantiles of the ratios since this was asked last."""
        return self._ratios.pop()


def weighed(name: str, part: object, given: Any, batch: UpdateBatch) -> Loss:
    """The (b, T) losses that a part gave, summed with the batch's weights, and its diagnostics.

    Raises:
        PartError: If losses or diagnostics are no tensors of that shape.
    """
    per_token, diagnostics = checked_losses(part, name, given, batch.packed.mask.shape)
    total = (per_token * batch.weights).sum()
    return Loss(total, {name: total}, {name: per_token}, diagnostics, batch.packed.mask)
