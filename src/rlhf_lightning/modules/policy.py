"""What all on-policy modules share: models, rollouts, the packed training step, and what a checkpoint keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from rlhf_lightning.algorithms.kl import DEFAULT_ESTIMATORS, KLTerm, KLTerms
from rlhf_lightning.border import check_any_succeeded
from rlhf_lightning.data.order import derive_seed
from rlhf_lightning.data.update_batches import TRUNCATIONS, updates_of
from rlhf_lightning.functional import AGGREGATION_MODES, masked_mean
from rlhf_lightning.holdings import POLICY, Forward, HeldModel, Holdings
from rlhf_lightning.models.critics import Critic
from rlhf_lightning.models.lora import LoRA
from rlhf_lightning.models.packed import causal_lm, packed_logprobs
from rlhf_lightning.modules.batches import Epoch, Loss, own_batches
from rlhf_lightning.modules.collector import Collector, EndsDraws, goes_on_after
from rlhf_lightning.modules.epoch import EpochModule
from rlhf_lightning.modules.forwards import RolloutForwards, cutting, trains_mixed
from rlhf_lightning.modules.generator import Generator, proxy_of, said_ways
from rlhf_lightning.modules.optim import StepGuard, adamw
from rlhf_lightning.modules.part_checks import (
    check_parts,
    check_scorer_weights,
    check_steps_are_scored,
    check_token_budget,
    warn_of_idle_parts,
)
from rlhf_lightning.modules.plan import BatchPlan, said_types
from rlhf_lightning.modules.reference import Reference
from rlhf_lightning.modules.token_details import samples_of
from rlhf_lightning.modules.updater import Updater
from rlhf_lightning.pipeline import Pipeline
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
from rlhf_lightning.types import Experience, PackedSequences, UpdateBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from rlhf_lightning.data.prompts import PromptData


class PolicyModule(EpochModule):
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
            :mod:`rlhf_lightning.modules.collector`.
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

    epoch_noun = "rollout"
    generator: Generator
    #: Whether the module trains a critic.
    has_critic = False
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
        super().__init__(optimizer, warmup_updates, max_grad_norm, seed)
        sizes = (prompts_per_rollout, samples_per_prompt, updates_per_rollout, epochs_per_rollout, token_budget)
        self.plan = BatchPlan(*sizes)
        check_choice(aggregation, AGGREGATION_MODES, "aggregation")
        check_choice(truncated, TRUNCATIONS, "truncated")
        self.truncation = TRUNCATIONS[truncated]
        parts: dict[str, Any] = {"transforms": reward_transforms, "advantage": advantage, "kl_reward": kl_reward}
        check_parts(self.plan, sampler, **parts, truncation=self.truncation, has_critic=self.has_critic)
        self.guard = StepGuard(max_nonfinite_in_a_row)
        self.advantage, self.policy_loss, self.measure_entropy = advantage, policy_loss, measure_entropy
        self.collector = Collector(self.plan, seed, overlap, policy_loss)
        check_scorer_weights(scorer_weights)
        self.scorer = combine(scorers, scorer_weights)
        self.transforms, self.extra_metrics = reward_transforms, metrics or []
        self.kl = KLTerms(kl_reward, kl_loss)
        warn_of_idle_parts(sampler, self.scorer, policy_loss, self.plan)
        self.logits_chunk, self.aggregation, self.train_in_16_bits = logits_chunk, aggregation, train_in_16_bits
        self.lora, self.gradient_checkpointing, self.float32_logits = lora, gradient_checkpointing, float32_logits
        self.generator = Generator(
            policy,
            self.collector.around(sampler),
            seed=seed,
            lora=lora,
            gradient_checkpointing=gradient_checkpointing,
            sixteen_bits=train_in_16_bits,
            float32_logits=float32_logits,
        )
        self.updater = Updater(policy_loss, self.kl, logits_chunk)
        self.policy: PreTrainedModel | None = None
        self.critic: Critic | None = None
        self.reference: Reference | None = None
        if self.kl.given:
            self.reference = Reference(reference, adapters=lora is not None, float32_logits=float32_logits)
        self._is_first, self._ways = True, ""

    @property
    def model(self) -> PreTrainedModel:
        """The policy, once it is loaded."""
        if self.policy is None:
            raise RuntimeError("the model is loaded by configure_model, which Lightning calls after setup")
        return self.policy

    @property
    def sampler(self) -> Sampler:
        """Draws responses."""
        return self.generator.sampler

    @property
    def proxy(self) -> Scorer | None:
        """The scorers that are not the verifier, weighted as in the run."""
        return proxy_of(self.scorer)

    @property
    def smallest_update(self) -> int:
        """Responses of an update with the fewest prompts."""
        return self.plan.prompts_per_rollout // self.plan.updates_per_rollout * self.plan.samples_per_prompt

    @property
    def updates_per_epoch(self) -> int:
        """Optimizer steps per rollout."""
        return self.plan.steps_per_rollout

    @property
    def prompts_seen(self) -> int:
        """Prompts whose rollouts are finished."""
        return self.rollout_index * self.plan.prompts_per_rollout

    # ---- before the first rollout -----------------------------------------------------------------------------------

    #: Most tokens of prompt and response together, where a module's other models read fewer than the policy.
    context_limit: int | None = None

    def preflight(self, data: PromptData) -> None:
        """Checks parts without weights, and that the first rollout's prompts, answered at length, fit a micro-batch.

        Raises:
            RLHFError: Naming what cannot be, what a scorer lacks, or what ``token_budget`` must be at least.
        """
        self.scorer.bind(data.tasks)
        self.scorer.check()
        check_steps_are_scored(self.advantage, self.scorer)
        self.generator.preflight(data, self.context_limit)
        self._ways = said_ways(self.holdings(), self.typical_lengths(data))
        longest = max(len(prompt.tokens) for prompt in data.train_prompts(0, self.plan.prompts_per_rollout))
        longest_response = self.sampler.params.max_new_tokens + self.truncation.go_on
        check_token_budget(self.plan.token_budget, longest, longest_response)

    def describe(self) -> str:
        """The run's batch arithmetic, which way its models' forwards go, and their types."""
        return "\n".join(filter(None, (str(self.plan), self._ways, *said_types(self.held_models()))))

    def held_models(self) -> tuple[HeldModel, ...]:
        """The policy, and a reference where one is loaded."""
        policy = self.generator.held_models()
        if self.reference is None:
            return policy
        return (*policy, *self.reference.held_models(self.generator.source, policy[0].dtype))

    def forwards(self) -> tuple[Forward, ...]:
        """What is computed of a rollout besides its scores."""
        wanted = () if self.reference is None else (Forward("reference", self.reference.role, True),)
        return (*wanted, *([Forward("entropy", POLICY, True)] if self.measure_entropy else []))

    def holdings(self) -> Holdings:
        """All models, the scorers' too; every epoch is a rollout, its passes without gradient, and its updates."""
        scorers = self.scorer.held_models()
        scored = tuple(Forward("score", held.role, False) for held in scorers)
        settings = (self.logits_chunk, self.gradient_checkpointing, self.float32_logits)
        models, forwards = (*self.held_models(), *scorers), (*scored, *self.forwards())
        exact = self.sampler.exact and not self.collector.overlap
        return Holdings(models, self.plan.updates(*settings), forwards, self.sampler.decoding(), True, exact)

    def typical_lengths(self, data: PromptData) -> tuple[float, float]:
        """The first rollout's prompts, and the longest response that is allowed."""
        prompts = data.train_prompts(0, self.plan.prompts_per_rollout)
        return sum(len(prompt.tokens) for prompt in prompts) / len(prompts), float(self.sampler.params.max_new_tokens)

    def load_trained(self) -> None:
        """Loads the policy as it is before the first update."""
        self.policy = self.generator.load()

    def load_frozen(self) -> None:
        """Loads the reference."""
        if self.reference is not None:
            self.reference.load(self.model)

    def connect(self) -> None:
        """Connects the parts."""
        super().connect()
        self.scorer.bind(self.data.tasks)
        self.scorer.bind_tokenizer(self.generator.tokenizer)  # type: ignore[arg-type]
        self.scorer.place(self.sharding.place_frozen)
        self.pipeline = Pipeline(
            sampler=self.generator.drawing,
            scorer=data_parallel(self.scorer),
            transforms=self.transforms,
            advantage=self.advantage,
            kl_reward=self.kl.reward,
            metrics=self.extra_metrics,
            events=self.events,
        )

    def models(self) -> dict[str, nn.Module]:
        """The policy and the reference."""
        own = getattr(self.reference, "model", None)
        return {"policy": causal_lm(self.model), **({} if own is None else {"reference": own})}

    def parameter_groups(self) -> dict[str, Iterable[nn.Parameter]]:
        """The policy's parameters."""
        return {"policy": self.model.parameters()}

    def short_forwards(self) -> dict[str, tuple[nn.Module, Callable[[PackedSequences], Tensor]]]:
        """The policy's log-probs."""
        return {"policy": (self.model, partial(packed_logprobs, self.model))}

    def identity(self) -> dict[str, Any]:
        """The policy's source and the seed, and what the scorers score with."""
        scorers = self.scorer.identity()
        own = {"policy": self.generator.source.identity(), "seed": self.seed}
        return own | ({"scorers": scorers} if scorers else {})

    def configure_callbacks(self) -> list[Callback]:
        """What ends the background's work with the fit."""
        return [] if self.collector.ahead is None else [EndsDraws(self.collector.ahead.sampler)]

    # ---- one rollout ------------------------------------------------------------------------------------------------

    def make_batches(self) -> Epoch:
        """Samples, scores, and cuts the experience into packed micro-batches."""
        experience = self.explore()
        if self._is_first:
            check_any_succeeded(experience.scores)
            self._is_first = False
        metrics = {**experience.metrics, **self.kl.betas()}
        if self.measure_entropy:
            with self.events.phase("entropy"):
                found = self.rollout_forwards().entropy(experience.rollout)
            metrics["policy/entropy"] = float(masked_mean(found, experience.rollout.mask))
        return Epoch(self.cut(experience), metrics, samples_of(experience), experience)

    def explore(self) -> Experience:
        """The rollout of this index."""
        steps = self.updates_per_epoch
        goes_on = goes_on_after(self.trainer, rollout=self.rollout_index, step=self.global_step + steps)
        self.generator.begin(self.model, self.global_step)
        own: dict[str, Any] = {"rollout": self.rollout_index, "version": self.global_step, "goes_on": goes_on}
        experience = self.collector.collect(self.pipeline, self.data, self.rollout_forwards(), **own)
        self.generator.drawing.release()
        self.model.train()
        return experience

    def rollout_forwards(self) -> RolloutForwards:
        """The models as they are now."""
        version = self.global_step if self.collector.overlap else None
        models, settings = (self.model, self.reference, self.critic), (self.plan, self.logits_chunk, self.truncation)
        mixed, exact = trains_mixed(self.trainer), self.sampler.exact
        return RolloutForwards(*models, *settings, self.outside_training, mixed, exact, version)

    def cut(self, experience: Experience) -> list[UpdateBatch]:
        """This rank's packed micro-batches of all updates, over all passes."""

        def mark(old: Tensor, advantages: Tensor, mask: Tensor, update: int) -> Tensor | Mapping[str, Tensor] | None:
            seed = derive_seed("mark", self.seed, self.rollout_index, update)
            return self.policy_loss.mark(old, advantages, mask, seed=seed)

        own: dict[str, Any] = {"mark": mark, "counted": self.truncation.counted(experience.rollout)}
        updates = updates_of(experience, aggregation=self.aggregation, **own, **cutting(self.plan))
        return [batch for update in updates for batch in own_batches(update)] * self.plan.epochs_per_rollout

    def update_loss(self, batch: UpdateBatch) -> Loss:
        """The micro-batch's share of the update's loss."""
        return self.updater(self.model, batch)

    def watch(self, loss: Loss, batch: UpdateBatch) -> None:
        """Counts ratios, and what is not finite."""
        self.updater.watch(loss, batch)

    def suspects(self) -> str:
        """Which losses of the update that is on were not finite."""
        return self.updater.pop_suspects()

    def epoch_means(self) -> dict[str, float]:
        """As for every module, with the ratios' quantiles."""
        return {**super().epoch_means(), **self.updater.pop_ratios()}

    def on_train_epoch_end(self) -> None:
        """The rollout is done: controllers see its KL, and the next one begins."""
        self.kl.see(self.rollout_metrics.get("kl/ref_k1_per_sequence"), self.plan.samples_per_rollout)
        super().on_train_epoch_end()

    def controllers(self) -> dict[str, Any]:
        """The KL controllers."""
        return dict(self.kl.controllers())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the next rollout, where it has been begun, if training can go on from the checkpoint."""
        super().on_save_checkpoint(checkpoint)
        self.collector.save(checkpoint, self.rollout_index)

    def on_load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """Restores the next rollout, where there is one."""
        super().on_load_checkpoint(checkpoint)
        if self.trainer.state.fn == "fit":
            self.collector.restore(checkpoint, self.data, self.rollout_index)
