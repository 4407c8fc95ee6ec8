"""The mathematics: pure functions of tensors, one equation each. Imports torch and the standard library only.

Shapes: B = P·G sequences with groups contiguous, T response tokens, S reasoning steps; a mask is True where a place
counts. Log-probs are in nats, in the order new, old, ref; losses are minimised and come unreduced: ``aggregate`` is the
reduction. ``docs/equations.md`` maps each function to its equation and its tests.
"""

from rlhf_lightning.functional import _rounding as _rounding  # tells MKL to repeat itself, before its first product
from rlhf_lightning.functional.aggregate import AGGREGATION_MODES, aggregate, aggregation_weights
from rlhf_lightning.functional.best_of_n import best_of_n, pass_at_n
from rlhf_lightning.functional.cispo import cispo_loss
from rlhf_lightning.functional.covariance import (
    clip_cov_loss,
    kl_cov_loss,
    largest_marks,
    random_marks,
    token_covariance,
)
from rlhf_lightning.functional.gae import discounted_returns, gae
from rlhf_lightning.functional.group import (
    equal_groups,
    group_center,
    group_normalize,
    leave_one_out,
    length_weighted_center,
)
from rlhf_lightning.functional.importance import (
    IMPORTANCE_LEVELS,
    IMPORTANCE_MODES,
    effective_sample_share,
    importance_log_weights,
    limit_weights,
)
from rlhf_lightning.functional.kl import kl_k1, kl_k2, kl_k3
from rlhf_lightning.functional.logprobs import chunked_token_logprobs, token_logprobs
from rlhf_lightning.functional.masked import last_true, masked_mean, masked_sum, masked_var, masked_whiten
from rlhf_lightning.functional.packing import GroupPiece, balanced_bins, pack_groups, row_starts, split_by_budget
from rlhf_lightning.functional.policy_loss import clipped_policy_loss
from rlhf_lightning.functional.process import process_advantages
from rlhf_lightning.functional.reward_loss import centering_loss, correctness_loss, preference_loss
from rlhf_lightning.functional.sequence_ratio import sequence_log_ratio, sequence_policy_loss
from rlhf_lightning.functional.shaping import asymmetric_shrink, clip_rewards, soft_overlong
from rlhf_lightning.functional.step_labels import (
    first_wrong_step,
    hard_step_labels,
    last_right_step,
    next_probe,
    search_step_labels,
    soft_step_labels,
)
from rlhf_lightning.functional.step_scores import STEP_AGGREGATIONS, aggregate_steps
from rlhf_lightning.functional.value_loss import clipped_value_loss

__all__ = [
    "AGGREGATION_MODES",
    "IMPORTANCE_LEVELS",
    "IMPORTANCE_MODES",
    "STEP_AGGREGATIONS",
    "GroupPiece",
    "aggregate",
    "aggregate_steps",
    "aggregation_weights",
    "asymmetric_shrink",
    "balanced_bins",
    "best_of_n",
    "centering_loss",
    "chunked_token_logprobs",
    "cispo_loss",
    "clip_cov_loss",
    "clip_rewards",
    "clipped_policy_loss",
    "clipped_value_loss",
    "correctness_loss",
    "discounted_returns",
    "effective_sample_share",
    "equal_groups",
    "first_wrong_step",
    "gae",
    "group_center",
    "group_normalize",
    "hard_step_labels",
    "importance_log_weights",
    "kl_cov_loss",
    "kl_k1",
    "kl_k2",
    "kl_k3",
    "largest_marks",
    "last_right_step",
    "last_true",
    "leave_one_out",
    "length_weighted_center",
    "limit_weights",
    "masked_mean",
    "masked_sum",
    "masked_var",
    "masked_whiten",
    "next_probe",
    "pack_groups",
    "pass_at_n",
    "preference_loss",
    "process_advantages",
    "random_marks",
    "row_starts",
    "search_step_labels",
    "sequence_log_ratio",
    "sequence_policy_loss",
    "soft_overlong",
    "soft_step_labels",
    "split_by_budget",
    "token_covariance",
    "token_logprobs",
]
