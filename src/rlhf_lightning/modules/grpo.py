"""GRPO (Shao et al. 2024), as the paper uses it.

Differs from DeepSeekMath's GRPO in what the defaults say: token-mean aggregation over the whole update (DAPO's; the
original averages each sequence first: ``aggregation: seq-mean-token-mean``), and no reward transforms unless given (the
paper clips, normalizes and shrinks: ``reward_transforms: [clip, group_normalize, asymmetric_shrink]`` with
``advantage: reinforce``).
"""

from __future__ import annotations

from typing import Any, ClassVar

from rlhf_lightning.algorithms.advantages import Group
from rlhf_lightning.algorithms.kl import KLTerm
from rlhf_lightning.algorithms.losses import Clip
from rlhf_lightning.modules.policy import PolicyModule
from rlhf_lightning.protocols import AdvantageEstimator, ModelSource, PolicyLoss, RewardTransform, Sampler, Scorer
from rlhf_lightning.registry import filled
from rlhf_lightning.samplers import InProcessSampler
from rlhf_lightning.scorers import VerifierScorer


class GRPOModule(PolicyModule):
    """Group-relative policy optimization: no critic, the samples of a prompt are each other's baseline.

    RLOO, REINFORCE, REINFORCE++, ReMax, OPO and Dr. GRPO are this module with another ``advantage``; GSPO and CISPO
    with another ``policy_loss``; DAPO is ``configs/tiny/dapo.yaml``.

    Args:
        policy: Where the policy comes from.
        sampler: Draws responses; in process when not given.
        scorers: Score responses; the task's verifier when not given.
        reward_transforms: Steps from score to reward, in this order; none when not given.
        advantage: Advantage estimator; ``group`` when not given.
        policy_loss: Surrogate objective; ``clip`` when not given.
        kl_loss: KL penalty added to the loss, by k3 unless it says otherwise; none when not given.
    """

    config_defaults: ClassVar[dict[str, Any]] = {
        "sampler": InProcessSampler,
        "scorers": [VerifierScorer],
        "reward_transforms": [],
        "advantage": Group,
        "policy_loss": Clip,
    }

    def __init__(
        self,
        policy: ModelSource,
        sampler: Sampler | None = None,
        scorers: list[Scorer] | None = None,
        reward_transforms: list[RewardTransform] | None = None,
        advantage: AdvantageEstimator | None = None,
        policy_loss: PolicyLoss | None = None,
        kl_loss: KLTerm | None = None,
        **kwargs: Any,
    ) -> None:
        parts = filled(
            type(self),
            sampler=sampler,
            scorers=scorers,
            reward_transforms=reward_transforms,
            advantage=advantage,
            policy_loss=policy_loss,
        )
        super().__init__(policy=policy, kl_loss=kl_loss, **parts, **kwargs)
