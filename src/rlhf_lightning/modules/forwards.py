"""What the trainer's models say of a whole rollout, without gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor, nn

from rlhf_lightning import ranks
from rlhf_lightning.data.update_batches import Truncation, rows_of_updates
from rlhf_lightning.functional.packing import GroupPiece
from rlhf_lightning.models.critics import Critic
from rlhf_lightning.models.prepare import SIXTEEN_BITS
from rlhf_lightning.models.rollout_logprobs import (
    Rows,
    over_rollout,
    rollout_entropy,
    rollout_logprobs,
    with_place_after,
)
from rlhf_lightning.modules.plan import BatchPlan
from rlhf_lightning.modules.reference import Reference
from rlhf_lightning.strategies import Sharding
from rlhf_lightning.types import Rollout

if TYPE_CHECKING:
    from lightning import Trainer
    from transformers import PreTrainedModel

T = TypeVar("T")


def outside_training(precision: Any, sharding: Sharding, compute: Callable[[], T]) -> T:
    """Runs forwards outside of a training step, at the precision of training steps; all ranks the same number.

    Args:
        precision: Lightning's precision plug-in.
        sharding: Where the weights are.
        compute: Runs them.
    """
    with precision.forward_context():
        return sharding.forward(compute)


def trains_mixed(trainer: Trainer) -> bool:
    """Whether training steps compute in 16 bits under autocast, or the strategy's own way."""
    return "mixed" in str(trainer.precision) or bool(getattr(trainer.strategy, "mixed_precision", None))


def cutting(plan: BatchPlan) -> dict[str, Any]:
    """How a rollout is cut into updates and rows."""
    return {"updates": plan.updates_per_rollout, "token_budget": plan.token_budget, "shared_by": ranks.world_size()}


@dataclass(frozen=True)
class RolloutForwards:
    """The models of one rollout, as they are before its updates, at the precision of training steps and in their rows.

    In 16 bits another row has other numbers, so a ratio of 1 would not be 1; in float32 they differ by rounding alone.

    Attributes:
        policy: The model that trains.
        reference: What it is held to; None where no KL term asks for it.
        critic: None where the module has none.
        plan: The batch arithmetic.
        logits_chunk: Tokens whose logits are held at once.
        truncation: What becomes of responses that were cut off.
        run: Runs forwards outside of a training step, as :func:`outside_training`.
        mixed: Whether training steps compute in 16 bits whatever the weights are.
        sampler_is_exact: Whether the sampler's log-probs are the policy's, in float32.
        version: The policy's, in updates; None where a rollout is always drawn with the newest weights.
    """

    policy: PreTrainedModel
    reference: Reference | None
    critic: Critic | None
    plan: BatchPlan
    logits_chunk: int
    truncation: Truncation
    run: Callable[[Callable[[], Any]], Any]
    mixed: bool
    sampler_is_exact: bool
    version: int | None

    @property
    def needed(self) -> bool:
        """Whether anything may have to be computed."""
        return not self._takes_the_samplers or self.version is not None or bool(self.reference or self.critic)

    def old_logprobs(self, rollout: Rollout) -> Tensor:
        """(B, T) log-probs that updates start from: the sampler's own, where the policy's are the same."""
        if self._takes_the_samplers and self.version in (None, rollout.weights_version):
            return rollout.logprobs
        return self._logprobs(self.policy, rollout, self._update_rows(rollout))

    def ref_logprobs(self, rollout: Rollout) -> Tensor | None:
        """(B, T) log-probs under the reference."""
        if self.reference is None:
            return None
        rows = self._update_rows(rollout) if self._is_narrow(self.policy) else None
        with self.reference.applied(self.policy) as model:
            return self._logprobs(model, rollout, rows)

    def values(self, rollout: Rollout) -> tuple[Tensor, Tensor] | None:
        """The critic's (B, T) values before each token, and (B,) after the last one.

        One forward for both: a place after the last token is predicted from that token, as any other is. In 16 bits
        that place would make other rows of the updates', so there it has a forward of its own, over the responses that
        go on.
        """
        if self.critic is None:
            return None
        self.critic.eval()
        going_on = self.truncation.going_on(rollout)
        longer = with_place_after(rollout, going_on)
        if self._is_narrow(self.policy) or self._is_narrow(self.critic):
            rows = self._update_rows(rollout)
            values, beyond = self._values(rollout, rows), self._values(longer, _those(going_on, rows, rollout))
        else:
            beyond = self._values(longer, None)
            values = beyond[:, :-1] * rollout.mask
        self.critic.train()
        return values, beyond.gather(1, rollout.lengths[:, None]).squeeze(1)

    def entropy(self, rollout: Rollout) -> Tensor:
        """(B, T) entropies of the distributions that the tokens were drawn from."""
        return self.run(partial(rollout_entropy, self.policy, rollout, **self._sizes))  # type: ignore[no-any-return]

    @property
    def _sizes(self) -> dict[str, Any]:
        """How much of a forward with logits is held at once."""
        return {"token_budget": self.plan.token_budget, "chunk_size": self.logits_chunk}

    @property
    def _takes_the_samplers(self) -> bool:
        return self.sampler_is_exact and not self._is_narrow(self.policy)

    def _is_narrow(self, model: nn.Module) -> bool:
        """Whether a training step computes with 16 bits: under autocast, or with weights that have no more."""
        return self.mixed or any(p.dtype in SIXTEEN_BITS.values() for p in model.parameters())

    def _update_rows(self, rollout: Rollout) -> Rows:
        """The packed rows of all updates on a rollout, in order, so that each rank has those that it will train on."""
        return [row for update in rows_of_updates(rollout, **cutting(self.plan))[1] for row in update]

    def _logprobs(self, model: PreTrainedModel, rollout: Rollout, rows: Rows | None) -> Tensor:
        return self.run(partial(rollout_logprobs, model, rollout, rows=rows, **self._sizes))  # type: ignore[no-any-return]

    def _values(self, rollout: Rollout, rows: Rows | None) -> Tensor:
        assert self.critic is not None
        of_row = partial(self.critic.values, self.policy)
        budget = self.plan.token_budget
        found: Tensor = self.run(partial(over_rollout, of_row, rollout, token_budget=budget, rows=rows))
        return found


def _those(wanted: Tensor, rows: Rows, rollout: Rollout) -> Rows:
    """The rows with the (B,) wanted responses alone."""
    left = [
        [GroupPiece(piece.group, tuple(i for i in piece.responses if wanted[piece.group * rollout.group_size + i]))
         for piece in row]
        for row in rows
    ]  # fmt: skip
    return [pieces for pieces in ([piece for piece in row if piece.responses] for row in left) if pieces]
