"""What all on-policy modules share: models, rollouts, the packed training step, and what a checkpoint keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from rlhf_lightning.algorithms.kl import DEFAULT_ESTIMATORS, KLTerm, KLTerms
from rlhf_lightning.border import check_any_succeeded
from rlhf_lightning.data.order import derive_seed
from rlhf_lightning.data.update_batches import TRUNCATIONS, updates_of
from rlhf_lightning.functional import AGGREGATION_MODES
from rlhf_lightning.holdings import Forward, Holdings, Updates
from rlhf_lightning.models.lora import LoRA
from rlhf_lightning.modules import part_checks
from rlhf_lightning.modules._exploring import ExploringModule
from rlhf_lightning.modules.evaluation import greedy_rewards, proxy_of, samples_of
from rlhf_lightning.modules.optim import StepGuard, adamw
from rlhf_lightning.modules.plan import (
    BatchPlan,
    check_bootstrap,
    check_estimator,
    check_group_size,
    check_temperature,
    check_token_budget,
    said_types,
)
from rlhf_lightning.modules.sharing import own_batches
from rlhf_lightning.pipeline import CriticValues, Pipeline
from rlhf_lightning.protocols import (
    AdvantageEstimator,
    Metric,
    ModelSource,
    PolicyLoss,
    RewardTransform,
    Sampler,
    Scorer,
)
from rlhf_lightning.registry import check_choice, defaults_of
from rlhf_lightning.scorers import combine
from rlhf_lightning.scorers.wrappers import data_parallel
from rlhf_lightning.types import Experience, UpdateBatch

if TYPE_CHECKING:
    from rlhf_lightning.data.prompts import PromptData


class PolicyModule(ExploringModule):
    """Trains a policy on its own samples; which algorithm it is depends only on the parts put in.

    One Lightning epoch is one rollout: the train dataloader samples with the current weights, and each batch is one
    packed micro-batch. One optimizer, named parameter groups, automatic optimization.

    Args:
        policy: Where the policy comes from.
        sampler: Draws responses.
        scorers: Score responses; their weighted sum is optimised.
        reward_transforms: Steps from score to reward, in this order.
        advantage: Advantage estimator.
        policy_loss: Surrogate objective.
        scorer_weights: One weight a scorer; all 1 when not given.
        kl_reward: KL penalty taken off the token rewards.
        kl_loss: KL penalty added to the loss; by k3 when its estimator is not given, and never by k1.
        reference: Where the frozen reference comes from; the policy's own start when not given.
        metrics: Further numbers to compute of each rollout.
        prompts_per_rollout: P.
        samples_per_prompt: M.
        updates_per_rollout: Gradient steps a pass over the rollout.
        epochs_per_rollout: Passes over each rollout.
        token_budget: Most tokens of a packed micro-batch.
        logits_chunk: Tokens whose logits are held at once.
        aggregation: How token losses become one number: ``token-mean``, ``seq-mean-token-mean``,
            ``seq-mean-token-sum`` or ``constant`` (divided by the sequences times the longest response allowed).
        optimizer: Makes the optimizer from the parameter groups; AdamW at 1e-6 when not given.
        warmup_updates: Linear warm-up; the learning rate is constant after it.
        max_grad_norm: Gradient norm limit a parameter group; None is no limit.
        lora: Low-rank adapters; the reference then is the policy with its adapters off.
        gradient_checkpointing: Recompute activations in the backward pass.
        seed: Run seed: with rollout, prompt and sample number it determines every draw.
        truncated: What becomes of responses that were cut off at their limit. ``keep``: they count like the others,
            their reward on the last token and a value of 0 after it. ``mask``: they count in no loss (but still in
            their group's statistics). ``bootstrap``: what would have followed is worth what the critic says after the
            last token, and so no limit teaches the critic that responses end there; the reward stays on that token. A
            penalty is a reward transform, ``missing_eos_penalty``.
        max_nonfinite_in_a_row: Updates in a row whose gradient is not finite that end the run; such an update is
            skipped and counted (``update/skipped``).
        overlap: 0 samples each rollout with the newest weights. 1 draws the next one in the background while this one
            trains, with the weights that this one began with: it is trained on one rollout's updates later. See
            :mod:`rlhf_lightning.modules._exploring`.
        measure_entropy: Log the exact entropy of the policy that made each rollout (``policy/entropy``), for one more
            forward of it a rollout. ``−policy/logprob_mean`` is an unbiased estimate of it that costs nothing.
        train_in_16_bits: Let weights that all train stay in the 16 bits of their source. They are float32 otherwise: at
            a learning rate of 1e-6 all but a hundredth of bfloat16 weights never move.
        float32_logits: Multiply with the LM head in float32, in training, for the reference, and where the sampler is
            ``in_process``, whatever the weights are, under autocast too. In bfloat16 a logit of 20 is off by up to
            1/16, differently in sampler and trainer. MiniMax-M1 (arXiv 2506.13585) and ScaleRL (arXiv 2510.13786)
            report that it lifts what training reaches. It takes a float32 copy of a 16-bit head.

    Raises:
        ConfigError: If the batch sizes cannot be, the sampler is greedy, group statistics lack samples, the advantage
            estimator wants a critic where there is none, or a part would do nothing.
    """

    config_defaults: ClassVar[dict[str, Any]] = {"optimizer": adamw(1e-6), **DEFAULT_ESTIMATORS}

    def __init__(
        self,
        policy: ModelSource,
        sampler: Sampler,
        scorers: list[Scorer],
        reward_transforms: list[RewardTransform],
        advantage: AdvantageEstimator,
        policy_loss: PolicyLoss,
        scorer_weights: list[float] | None = None,
        kl_reward: KLTerm | None = None,
        kl_loss: KLTerm | None = None,
        reference: ModelSource | None = None,
        metrics: list[Metric] | None = None,
        prompts_per_rollout: int = 1024,
        samples_per_prompt: int = 4,
        updates_per_rollout: int = 8,
        epochs_per_rollout: int = 1,
        token_budget: int = 16_384,
        logits_chunk: int = 1024,
        aggregation: str = "token-mean",
        optimizer: OptimizerCallable | None = None,
        warmup_updates: int = 0,
        max_grad_norm: float | None = 1.0,
        lora: LoRA | None = None,
        gradient_checkpointing: bool = False,
        seed: int = 1,
        truncated: Literal["keep", "mask", "bootstrap"] = "keep",
        max_nonfinite_in_a_row: int = 5,
        overlap: int = 0,
        measure_entropy: bool = False,
        train_in_16_bits: bool = False,
        float32_logits: bool = False,
    ) -> None:
        optimizer = optimizer or defaults_of(type(self))["optimizer"]
        trained = (policy, sampler, optimizer, warmup_updates, max_grad_norm, lora, gradient_checkpointing)
        super().__init__(*trained, seed, train_in_16_bits, float32_logits)
        sizes = (prompts_per_rollout, samples_per_prompt, updates_per_rollout, epochs_per_rollout, token_budget)
        self.plan = BatchPlan(*sizes)
        check_temperature(sampler)
        check_group_size(samples_per_prompt, [sampler, advantage, *reward_transforms])
        check_estimator(advantage, reward_transforms, kl_reward, has_critic=self.has_critic)
        part_checks.check_steps(reward_transforms, advantage, kl_reward, group_size=samples_per_prompt)
        part_checks.check_lengths(reward_transforms, max_new_tokens=sampler.params.max_new_tokens)
        check_choice(aggregation, AGGREGATION_MODES, "aggregation")
        check_choice(truncated, TRUNCATIONS, "truncated")
        self.truncation = TRUNCATIONS[truncated]
        check_bootstrap(advantage, wanted=self.truncation.go_on)
        if not self.truncation.count:
            part_checks.check_masked(reward_transforms, advantage)
        self.guard = StepGuard(max_nonfinite_in_a_row)
        self.measure_entropy, self.reference_source = measure_entropy, reference
        self.advantage, self.policy_loss = advantage, policy_loss
        self.sample_ahead(overlap)
        part_checks.check_scorer_weights(scorer_weights)
        self.scorer = combine(scorers, scorer_weights)
        self.transforms, self.extra_metrics = reward_transforms, metrics or []
        self.kl = KLTerms(kl_reward, kl_loss)
        part_checks.warn_of_idle_parts(sampler, self.scorer, policy_loss, self.plan)
        self.logits_chunk, self.aggregation = logits_chunk, aggregation

    epoch_noun = "rollout"
    #: Whether the module trains a critic.
    has_critic = False
    _explored = False

    @property
    def proxy(self) -> Scorer | None:
        """The scorers that are not the verifier, weighted as in the run."""
        return proxy_of(self.scorer)

    @property
    def smallest_update(self) -> int:
        """Responses of an update with the fewest prompts."""
        return self.plan.prompts_per_rollout // self.plan.updates_per_rollout * self.plan.samples_per_prompt

    @property
    def prompts_seen(self) -> int:
        """Prompts whose rollouts are finished."""
        return self.rollout_index * self.plan.prompts_per_rollout

    def preflight(self, data: PromptData) -> None:  # type: ignore[override]
        """As for every generating module; and that scorers have what they need, and prompts fit a micro-batch.

        The prompts are the first rollout's, answered at length.

        Raises:
            RLHFError: Naming what a scorer lacks, or ``token_budget`` and what it must be at least.
        """
        self.scorer.bind(data.tasks)
        self.scorer.check()
        part_checks.check_steps_are_scored(self.advantage, self.scorer)
        super().preflight(data)
        longest = max(len(prompt.tokens) for prompt in data.train_prompts(0, self.plan.prompts_per_rollout))
        longest_response = self.sampler.params.max_new_tokens + self.truncation.go_on
        check_token_budget(self.plan.token_budget, longest, longest_response)

    def describe(self) -> str:
        """The run's batch arithmetic, which way its policy's training forward goes, and its models' types."""
        return "\n".join(filter(None, (str(self.plan), super().describe(), *said_types(self.held_models()))))

    def holdings(self) -> Holdings:
        """All models, the scorers' too; every epoch is a rollout, its passes without gradient, and its updates."""
        plan, scorers = self.plan, self.scorer.held_models()
        scored = tuple(Forward("score", held.role, False) for held in scorers)
        updates = Updates(
            plan.updates_per_rollout,
            -(-plan.prompts_per_rollout // plan.updates_per_rollout),
            plan.samples_per_prompt,
            plan.token_budget,
            plan.epochs_per_rollout,
            self.logits_chunk,
            self.gradient_checkpointing,
            self.float32_logits,
        )
        models, forwards = (*self.held_models(), *scorers), (*scored, *self.forwards())
        exact = self.sampler.exact and not self.overlap
        return Holdings(models, updates, forwards, self.sampler.decoding(), True, exact)

    def typical_lengths(self, data: PromptData) -> tuple[float, float]:
        """The first rollout's prompts, and the longest response that is allowed."""
        prompts = data.train_prompts(0, self.plan.prompts_per_rollout)
        return sum(len(prompt.tokens) for prompt in prompts) / len(prompts), float(self.sampler.params.max_new_tokens)

    def configure_model(self) -> None:
        """Loads policy and reference, and connects the parts."""
        if self.policy is not None:
            return
        super().configure_model()
        self.scorer.bind(self.data.tasks)
        self.scorer.bind_tokenizer(self.tokenizer)
        self.scorer.place(self.sharding.place_frozen)
        self.pipeline = self._make_pipeline()

    def _make_pipeline(self) -> Pipeline:
        scorer = data_parallel(self.scorer)
        baseline = partial(greedy_rewards, self.sampler, scorer, self.transforms)
        return Pipeline(
            sampler=self.sampler,
            scorer=scorer,
            transforms=self.transforms,
            advantage=self.advantage,
            kl_reward=self.kl.reward,
            reference=self._reference_logprobs if self.kl.given else None,
            behaviour=self.behaviour,
            values=self.values_of,
            prompt_baseline=baseline if self.advantage.needs_prompt_baseline else None,
            metrics=self.extra_metrics,
            events=self.events,
        )

    @property
    def values_of(self) -> CriticValues | None:
        """The critic's values of a rollout; None without a critic."""
        return None

    # ---- one rollout ------------------------------------------------------------------------------------------------

    @property
    def updates_per_epoch(self) -> int:
        """Optimizer steps a rollout."""
        return self.plan.steps_per_rollout

    def make_batches(self) -> Sequence[UpdateBatch]:
        """Samples, scores, and cuts the experience into packed micro-batches."""
        self.tell_callbacks()
        experience = self.explore()
        if not self._explored:
            check_any_succeeded(experience.scores)
        self._explored = True
        self.rollout_metrics |= {**experience.metrics, **self.kl.betas(), **self._entropy(experience.rollout)}
        self.rollout_samples = samples_of(experience)
        self.tell_callbacks("on_experience", experience)
        return self._cut(experience)

    def _cut(self, experience: Experience) -> list[UpdateBatch]:
        own: dict[str, Any] = {"mark": self._mark, "counted": self.truncation.counted(experience.rollout)}
        updates = updates_of(experience, aggregation=self.aggregation, **own, **self.cutting)
        return [batch for update in updates for batch in own_batches(update)] * self.plan.epochs_per_rollout

    def _mark(self, old: Tensor, advantages: Tensor, mask: Tensor, update: int) -> Tensor | Mapping[str, Tensor] | None:
        seed = derive_seed("mark", self.seed, self.rollout_index, update)
        return self.policy_loss.mark(old, advantages, mask, seed=seed)

    def identity(self) -> dict[str, Any]:
        """The policy's source and the seed, and what the scorers score with."""
        scorers = self.scorer.identity()
        return super().identity() | ({"scorers": scorers} if scorers else {})
