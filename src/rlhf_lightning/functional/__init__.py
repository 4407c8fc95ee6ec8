"""The mathematics: pure functions of tensors, one equation each. Imports torch and the standard library only.

Shapes: B = P·G sequences with groups contiguous, T response tokens, S reasoning steps; a mask is True where a place
counts. Log-probs are in nats, in the order new, old, ref; losses are minimised and come unreduced: ``aggregate`` is the
reduction. ``docs/equations.md`` maps each function to its equation and its tests.
"""

from rlhf_lightning.functional.aggregate import AGGREGATION_MODES, aggregate, aggregation_weights
from rlhf_lightning.functional.best_of_n import best_of_n, pass_at_n
from rlhf_lightning.functional.gae import discounted_returns, gae
from rlhf_lightning.functional.group import equal_groups, group_center, group_normalize, leave_one_out
from rlhf_lightning.functional.kl import kl_k1, kl_k2, kl_k3
from rlhf_lightning.functional.logprobs import chunked_token_logprobs, token_logprobs
from rlhf_lightning.functional.masked import last_true, masked_mean, masked_sum, masked_var, masked_whiten
from rlhf_lightning.functional.packing import GroupPiece, balanced_bins, pack_groups, row_starts, split_by_budget
from rlhf_lightning.functional.policy_loss import clipped_policy_loss
from rlhf_lightning.functional.reward_loss import centering_loss, correctness_loss, preference_loss
from rlhf_lightning.functional.shaping import asymmetric_shrink, clip_rewards
from rlhf_lightning.functional.step_scores import STEP_AGGREGATIONS, aggregate_steps
from rlhf_lightning.functional.value_loss import clipped_value_loss

__all__ = [
    "AGGREGATION_MODES",
    "STEP_AGGREGATIONS",
    "GroupPiece",
    "aggregate",
    "aggregate_steps",
    "aggregation_weights",
    "asymmetric_shrink",
    "balanced_bins",
    "centering_loss",
    "best_of_n",
    "chunked_token_logprobs",
    "clip_rewards",
    "clipped_policy_loss",
    "clipped_value_loss",
    "correctness_loss",
    "discounted_returns",
    "equal_groups",
    "gae",
    "group_center",
    "group_normalize",
    "kl_k1",
    "kl_k2",
    "kl_k3",
    "last_true",
    "leave_one_out",
    "masked_mean",
    "masked_sum",
    "masked_var",
    "masked_whiten",
    "pack_groups",
    "pass_at_n",
    "preference_loss",
    "row_starts",
    "split_by_budget",
    "token_logprobs",
]
