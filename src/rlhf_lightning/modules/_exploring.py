"""How a policy comes by its rollouts: drawn with its newest weights, or one ahead, while the rollout before trains.

With ``overlap: 1`` the responses of rollout r + 1 are drawn in the background while rollout r trains, by the weights
that rollout r began with: those of rollout 0 and 1 by the initial weights, those of rollout r + 1 by weights that are
one rollout's updates older than the ones they train. Which samples a rollout has is a function of those weights and
the seed, not of time. What that costs and what is done about it:

- Updates start from the policy of now: π_old is the trainer's at the beginning of the rollout's updates, so its ratio
  starts at 1, and the policy loss ``importance`` weighs each token by π_old/π_sampler, the log-probs that its response
  was really drawn with (decoupled: Hilton et al. 2021, arXiv 2110.00641; Fu et al. 2025, arXiv 2505.24298). A loss
  that would take the samples for the policy's own is refused.
- All else (means, KL estimates and what controllers see of them, advantages, a critic's returns) is of the stale
  samples, without weights. ``rollout/staleness`` says how many updates stand between.
- Scores, reference, values and π_old are computed when the rollout's turn comes, on the main thread. A sampler that
  draws more then (``dynamic``), and greedy baselines (ReMax), use the newest weights; each response keeps its own
  log-probs.
- A checkpoint at a rollout's edge waits for the rollout that is being drawn and keeps it, so a resumed run goes on as
  one that was not interrupted. A run that ends draws nothing for after its end: made longer later, it begins there
  with a rollout of its newest weights. With an error while drawing, the run ends at the edge, before the checkpoint.
- Where sampler and trainer share one processor there is little to gain: it is for servers and engines that would idle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import Callback
from torch import Tensor

from rlhf_lightning.modules._referred import ReferredModule
from rlhf_lightning.modules.ahead import Ahead, EndsDraws, check_overlap, check_version
from rlhf_lightning.modules.further import further_prompts
from rlhf_lightning.modules.sharing import computes_narrow
from rlhf_lightning.pipeline import LogProbs, Pipeline
from rlhf_lightning.protocols import AdvantageEstimator, Sampler
from rlhf_lightning.samplers.overlap import OverlapSampler
from rlhf_lightning.samplers.seeds import sample_seeds
from rlhf_lightning.strategies.checkpoints import is_complete
from rlhf_lightning.types import Experience, Prompt, Rollout

if TYPE_CHECKING:
    from rlhf_lightning.data.prompts import PromptData


class ExploringModule(ReferredModule):
    """A policy that trains on its own samples.

    Attributes:
        overlap: Rollouts that are drawn ahead: 0 or 1.
        pipeline: From prompts to experience, once the models are loaded.
        advantage: Advantage estimator.
    """

    overlap: int
    pipeline: Pipeline
    advantage: AdvantageEstimator

    @property
    def data(self) -> PromptData:
        """The run's prompts."""
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def sample_ahead(self, overlap: int) -> None:
        """Sets how far ahead of training rollouts are drawn; once, before anything is loaded.

        Raises:
            ConfigError: If it is neither 0 nor 1, or the sampler or the policy loss is not made for it.
        """
        check_overlap(overlap, self.policy_loss)
        self.overlap, self._ahead = overlap, None  # type: int, Ahead | None
        if overlap:
            self.sampler = self.sampler.wrap_drawing(self._drawn_ahead)

    def _drawn_ahead(self, sampler: Sampler) -> Sampler:
        drawing = OverlapSampler(sampler)
        self._ahead = Ahead(drawing)
        return drawing

    def configure_callbacks(self) -> list[Callback]:
        """What ends the background's work with the fit."""
        return [] if self._ahead is None else [EndsDraws(self._ahead.sampler)]

    # ---- one rollout ------------------------------------------------------------------------------------------------

    def explore(self) -> Experience:
        """The rollout of this index: a function of the seed, the index, and the weights of now or one rollout ago."""
        self.to_rollout_mode()
        prompts, seeds = self._asked(self.rollout_index)
        samples = self.plan.samples_per_prompt
        drawn = self.pipeline.draw(prompts, samples_per_prompt=samples, seeds=seeds)
        oldest = self.global_step - self.overlap * self.updates_per_epoch
        check_version(drawn.weights_version, self.global_step, oldest=oldest)
        self.rollout_metrics |= self._staleness(drawn)
        experience = self._judged(drawn, prompts)
        self.sampler.release()
        self.model.train()
        return experience

    def _judged(self, drawn: Rollout, prompts: Sequence[Prompt]) -> Experience:
        """The next rollout's draw begins as soon as nothing is asked of the sampler for this one."""
        asks_more = self.sampler.refills or self.advantage.needs_prompt_baseline
        further = further_prompts(
            self.data,
            prompts,
            seed=self.seed,
            rollout=self.rollout_index,
            samples_per_prompt=self.plan.samples_per_prompt,
        )
        if not asks_more:
            self._begin_next()
        experience = self.pipeline.judge(drawn, further)
        if asks_more:
            self._begin_next()
        return experience

    def _asked(self, rollout: int) -> tuple[Sequence[Prompt], Tensor]:
        """Prompts of a rollout, and the seeds of their samples."""
        prompts = self.data.train_prompts(rollout, self.plan.prompts_per_rollout)
        return prompts, sample_seeds(self.seed, rollout, prompts, self.plan.samples_per_prompt)

    def _begin_next(self) -> None:
        if self._ahead is not None and self._goes_on:
            following = self.rollout_index + 1
            prompts, seeds = self._asked(following)
            self._ahead.begin(following, prompts, self.plan.samples_per_prompt, seeds)

    @property
    def _goes_on(self) -> bool:
        """Whether the trainer means to train on another rollout after this one."""
        epochs, steps = self.trainer.max_epochs, self.trainer.max_steps
        more = epochs is None or epochs < 0 or self.rollout_index + 1 < epochs
        return more and (steps < 0 or self.global_step + self.updates_per_epoch < steps)

    def _staleness(self, drawn: Rollout) -> dict[str, float]:
        if self._ahead is None:
            return {}
        return {"rollout/staleness": float(self.global_step - drawn.weights_version), **self._ahead.logged()}

    # ---- log-probs before the updates -------------------------------------------------------------------------------

    @property
    def behaviour(self) -> LogProbs | None:
        """The trainer's log-probs of a rollout; None where the sampler's always are the same."""
        if not self._sampler_is_exact:
            return self._policy_logprobs
        return self._logprobs_unless_fresh if self.overlap else None

    @property
    def _sampler_is_exact(self) -> bool:
        """Whether the sampler's log-probs are the trainer's own: not in 16 bits, where even another row has others."""
        return self.sampler.exact and not computes_narrow(self.trainer, self.model)

    def _logprobs_unless_fresh(self, rollout: Rollout) -> Tensor:
        fresh = rollout.weights_version == self.global_step
        return rollout.logprobs if fresh else self._policy_logprobs(rollout)

    # ---- checkpoints ------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the next rollout, where it has been begun; at an edge alone, and if training can go on from there."""
        super().on_save_checkpoint(checkpoint)
        if self._ahead is not None and is_complete(checkpoint):
            checkpoint["rlhf"]["ahead"] = self._ahead.state_of(self.rollout_index)

    def on_load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """Restores the next rollout, where there is one; without overlap it is left out.

        Raises:
            ConfigError: As for every module; or if it was drawn for other prompts, or another number of samples.
        """
        super().on_load_checkpoint(checkpoint)
        state = checkpoint["rlhf"].get("ahead")
        if self._ahead is not None and state is not None and self.trainer.state.fn == "fit":
            self._ahead.restore(state, self.rollout_index, *self._asked(self.rollout_index))
