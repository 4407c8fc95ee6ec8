"""PPO with a critic (Schulman et al. 2017), for language models as Ouyang et al. (2022) and the paper use it.

Differs from the original in what the defaults say: the reward stands on a response's last token and the KL penalty on
every one, gamma is 1, advantages are whitened over the whole rollout, and there is one pass over each rollout. Rewards
go through ``reward_transforms`` before the advantages are estimated, so the paper's PPO is
``reward_transforms: [clip, group_normalize]``: a critic on top of rewards that are normalized within each group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from rlhf_lightning.algorithms.advantages import GAE
from rlhf_lightning.algorithms.kl import KLTerm
from rlhf_lightning.algorithms.losses import Clip, ClippedValue
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.holdings import CRITIC, POLICY, Forward, HeldModel
from rlhf_lightning.models.context import context_length
from rlhf_lightning.models.critics import Critic, SharedHead, adapter_critic, check_critic_source, own_critic
from rlhf_lightning.models.reward_folder import with_head
from rlhf_lightning.modules.batches import Loss
from rlhf_lightning.modules.policy import PolicyModule
from rlhf_lightning.modules.updater import Updater, weighed
from rlhf_lightning.protocols import (
    AdvantageEstimator,
    ModelSource,
    PolicyLoss,
    RewardTransform,
    Sampler,
    Scorer,
    ValueLoss,
)
from rlhf_lightning.registry import filled
from rlhf_lightning.samplers import InProcessSampler
from rlhf_lightning.scorers import VerifierScorer
from rlhf_lightning.types import PackedSequences, UpdateBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from rlhf_lightning.data.prompts import PromptData


class PPOModule(PolicyModule):
    """Proximal policy optimization with a critic: one optimizer, the groups ``policy`` and ``critic``.

    The critic is a model of its own with a scalar head, beginning as the policy or as ``critic``; or, with
    ``shared_backbone``, a head on the policy. With ``lora``, it is adapters and a head, on the policy's own frozen
    weights unless it has a source of its own.

    Args:
        policy: Where the policy comes from.
        critic: Where the critic comes from: a reward model (its head is kept) or a causal LM (a head of zeros is put
            on), with the policy's tokenizer; the policy's source when not given.
        shared_backbone: The critic is a value head on the policy's hidden states, and the value loss shapes both.
        sampler: Draws responses; in process when not given.
        scorers: Score responses; the task's verifier when not given.
        reward_transforms: Steps from score to reward, in this order; none when not given.
        advantage: Advantage estimator that uses the critic; ``gae`` when not given.
        policy_loss: Surrogate objective; ``clip`` when not given.
        value_loss: The critic's objective; ``clipped`` when not given.
        value_coefficient: What the value loss is multiplied with. With ``shared_backbone`` it weighs the two against
            each other; for a critic of its own Adam makes it nearly meaningless.
        critic_lr: The critic's learning rate (OpenRLHF's when not given); the policy's is the optimizer's.
        critic_warmup_rollouts: Rollouts at the beginning that train the critic alone. The policy stays what it is, bit
            for bit, and its learning rate warms up after them.
        kl_reward: KL penalty taken off the token rewards; none when not given.

    Raises:
        ConfigError: If ``critic`` and ``shared_backbone`` are both given, a number is out of range, or the advantage
            estimator uses no critic.
    """

    has_critic = True
    updater: ActorCriticUpdater
    config_defaults: ClassVar[dict[str, Any]] = {
        "sampler": InProcessSampler,
        "scorers": [VerifierScorer],
        "reward_transforms": [],
        "advantage": GAE,
        "policy_loss": Clip,
        "value_loss": ClippedValue,
    }

    def __init__(
        self,
        policy: ModelSource,
        critic: ModelSource | None = None,
        shared_backbone: bool = False,
        sampler: Sampler | None = None,
        scorers: list[Scorer] | None = None,
        reward_transforms: list[RewardTransform] | None = None,
        advantage: AdvantageEstimator | None = None,
        policy_loss: PolicyLoss | None = None,
        value_loss: ValueLoss | None = None,
        value_coefficient: float = 1.0,
        critic_lr: float = 9e-6,
        critic_warmup_rollouts: int = 0,
        kl_reward: KLTerm | None = None,
        **kwargs: Any,
    ) -> None:
        parts = filled(
            type(self),
            sampler=sampler,
            scorers=scorers,
            reward_transforms=reward_transforms,
            advantage=advantage,
            policy_loss=policy_loss,
            value_loss=value_loss,
        )
        own_loss = parts.pop("value_loss")
        super().__init__(policy=policy, kl_reward=kl_reward, **parts, **kwargs)
        _check(critic, shared_backbone, value_coefficient, critic_lr, critic_warmup_rollouts)
        self.critic_source = with_head(critic) if critic else policy
        self.shared_backbone, self.has_own_source = shared_backbone, critic is not None
        self.updater = ActorCriticUpdater(self.updater, own_loss, value_coefficient)
        self.critic_lr, self.critic_warmup_rollouts = critic_lr, critic_warmup_rollouts

    @property
    def value_model(self) -> Critic:
        """The critic, once it is loaded."""
        if self.critic is None:
            raise RuntimeError("the critic is loaded by configure_model, which Lightning calls after setup")
        return self.critic

    @property
    def warming_up(self) -> bool:
        """Whether this rollout trains the critic alone."""
        return self.rollout_index < self.critic_warmup_rollouts

    @property
    def context_limit(self) -> int:  # type: ignore[override]
        """Most tokens that the critic can read."""
        return context_length(self.critic_source)

    def preflight(self, data: PromptData) -> None:
        """As for every on-policy module; and that the critic reads the policy's tokens.

        Raises:
            ConfigError: Naming what differs.
        """
        super().preflight(data)
        check_critic_source(self.critic_source, self.generator.tokenizer)  # type: ignore[arg-type]

    def load_trained(self) -> None:
        """Loads policy and critic."""
        super().load_trained()
        self.critic = self._make_critic().train()

    def _make_critic(self) -> Critic:
        if self.shared_backbone:
            return SharedHead(self.model)
        if self.lora is not None and not self.has_own_source:
            return adapter_critic(
                self.model,
                lora=self.lora,
                gradient_checkpointing=self.gradient_checkpointing,
                share=not self.sharding.is_sharded,
            )
        return own_critic(
            self.critic_source,
            lora=self.lora,
            gradient_checkpointing=self.gradient_checkpointing,
            sixteen_bits=self.train_in_16_bits,
        )

    def parameter_groups(self) -> dict[str, Iterable[torch.nn.Parameter]]:
        """The policy's and the critic's parameters."""
        return {**super().parameter_groups(), "critic": self.value_model.parameters()}

    def short_forwards(self) -> dict[str, tuple[nn.Module, Callable[[PackedSequences], Tensor]]]:
        """The policy's log-probs and the critic's values."""
        return {**super().short_forwards(), "critic": (self.value_model, partial(self.value_model.values, self.model))}

    def models(self) -> dict[str, nn.Module]:
        """The policy, the critic, and the reference."""
        return {**super().models(), "critic": self.value_model.root}

    def scalar_models(self) -> dict[str, tuple[nn.Module, Any]]:
        """The critic, unless it is a head on the policy."""
        return {} if self.shared_backbone else {"critic": (self.value_model.root, self.critic_source.tokenizer())}

    def held_models(self) -> tuple[HeldModel, ...]:
        """The policy, the critic where it is more than a head, and the reference."""
        if self.shared_backbone:
            return super().held_models()
        shares = POLICY if self.lora is not None and not self.has_own_source else None
        own = {"lora": self.lora, "dtype": self.generator.dtype_of(self.critic_source)}
        critic = HeldModel(CRITIC, self.critic_source, True, scalar=True, weights_of=shares, **own)  # type: ignore[arg-type]
        policy, *others = super().held_models()
        return policy, critic, *others

    def forwards(self) -> tuple[Forward, ...]:
        """As for every on-policy module, and the values."""
        return (*super().forwards(), Forward("values", POLICY if self.shared_backbone else CRITIC, False))

    def learning_rates(self) -> dict[str, float]:
        """The critic's own."""
        return {"critic": self.critic_lr}

    def idle_groups(self) -> tuple[str, ...]:
        """The policy, while the critic warms up."""
        return ("policy",) if self.warming_up else ()

    def update_delays(self) -> dict[str, int]:
        """The policy's learning rate waits for the critic."""
        return {"policy": self.critic_warmup_rollouts * self.updates_per_epoch}

    def identity(self) -> dict[str, Any]:
        """The models' sources and the seed."""
        critic = "a head on the policy" if self.shared_backbone else self.critic_source.identity()
        return {**super().identity(), "critic": critic}

    # ---- updates ----------------------------------------------------------------------------------------------------

    def update_loss(self, batch: UpdateBatch) -> Loss:
        """Policy loss and value loss; while the critic warms up, the policy is left out, and so has no gradient."""
        if not self.warming_up:
            return self.updater.both(self.model, self.value_model, batch)
        loss = self.updater.value_objective(self.value_model.values(self.model, batch.packed), batch)
        return replace(loss, total=loss.total + self.sharding.touch(self.model.parameters()))


class ActorCriticUpdater(Updater):
    """As for a policy alone, and the critic's loss.

    Args:
        policy: What the policy's losses are.
        value_loss: The critic's objective.
        coefficient: What it is multiplied with.
    """

    def __init__(self, policy: Updater, value_loss: ValueLoss, coefficient: float) -> None:
        super().__init__(policy.policy_loss, policy.kl, policy.logits_chunk)
        self.value_loss, self.coefficient = value_loss, coefficient

    def both(self, model: PreTrainedModel, critic: Critic, batch: UpdateBatch) -> Loss:
        """Policy loss and value loss, in as few forwards as it takes."""
        settings = {"temperature": batch.temperature, "chunk_size": self.logits_chunk}
        logprobs, values = critic.with_logprobs(model, batch.packed, **settings)  # type: ignore[arg-type]
        return self.objective(batch.packed.to_rows(logprobs), batch) + self.value_objective(values, batch)

    def value_objective(self, values: Tensor, batch: UpdateBatch) -> Loss:
        """The value loss, given a row's (R,) values with gradient."""
        new = batch.packed.to_rows(values)
        loss = weighed("loss/value", self.value_loss, self.value_loss(new, batch), batch)
        return replace(loss, total=self.coefficient * loss.total, tokens={"values": new, **loss.tokens})


def _check(critic: ModelSource | None, shared: bool, coefficient: float, rate: float, warmup: int) -> None:
    if shared and critic is not None:
        raise ConfigError("shared_backbone: the critic is a head on the policy, so it has no source: leave critic out")
    if not 0 < coefficient < math.inf:
        raise ConfigError(f"value_coefficient must be above 0 and finite, got {coefficient}")
    if not 0 <= rate < math.inf:
        raise ConfigError(f"critic_lr must not be negative, got {rate} (a finite number)")
    if warmup < 0:
        raise ConfigError(f"critic_warmup_rollouts must not be negative, got {warmup}")
