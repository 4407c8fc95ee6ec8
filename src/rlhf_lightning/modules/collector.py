"""How a policy comes by its experience: drawn with its newest weights, or one ahead while the rollout before trains.

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
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from rlhf_lightning.axes import flat, to_device, unflat
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.modules.forwards import RolloutForwards
from rlhf_lightning.modules.plan import BatchPlan
from rlhf_lightning.pipeline import Pipeline
from rlhf_lightning.protocols import PolicyLoss, Sampler
from rlhf_lightning.ranks import own_share
from rlhf_lightning.samplers.overlap import OverlapSampler
from rlhf_lightning.samplers.seeds import sample_seeds
from rlhf_lightning.samplers.wrappers import gathered_rollout, own_part
from rlhf_lightning.strategies.checkpoints import is_complete
from rlhf_lightning.types import Experience, Prompt, Rollout

if TYPE_CHECKING:
    from rlhf_lightning.data.prompts import PromptData


class Collector:
    """From prompts to experience: a function of the seed, the rollout's number, and the weights of now or one ago.

    Args:
        plan: The batch arithmetic.
        seed: Run seed.
        overlap: Rollouts that are drawn ahead: 0 or 1.
        loss: What trains on them.

    Raises:
        ConfigError: If ``overlap`` is neither, or the loss is not made for it.

    Attributes:
        ahead: What is drawn ahead; None without overlap.
    """

    def __init__(self, plan: BatchPlan, seed: int, overlap: int, loss: PolicyLoss) -> None:
        check_overlap(overlap, loss)
        self.plan, self.seed, self.overlap = plan, seed, overlap
        self.ahead: Ahead | None = None

    def around(self, sampler: Sampler) -> Sampler:
        """The run's sampler; with overlap, one that draws in the background.

        Raises:
            ConfigError: If it is not made for that.
        """
        return sampler.wrap_drawing(self._drawn_ahead) if self.overlap else sampler

    def _drawn_ahead(self, sampler: Sampler) -> Sampler:
        self.ahead = Ahead(OverlapSampler(sampler))
        return self.ahead.sampler

    def collect(
        self,
        pipeline: Pipeline,
        data: PromptData,
        forwards: RolloutForwards,
        *,
        rollout: int,
        version: int,
        goes_on: bool,
    ) -> Experience:
        """One rollout with its advantages; the draw of the next one begins here, where there is overlap.

        It begins as soon as nothing is asked of the sampler for this rollout.

        Args:
            pipeline: The parts.
            data: The run's prompts.
            forwards: The trainer's models.
            rollout: Index of the rollout.
            version: Updates that the policy has seen.
            goes_on: Whether another rollout follows.
        """
        prompts, seeds = self.asked(data, rollout)
        drawn = pipeline.draw(prompts, samples_per_prompt=self.plan.samples_per_prompt, seeds=seeds)
        oldest = version - self.overlap * self.plan.steps_per_rollout
        check_version(drawn.weights_version, version, oldest=oldest)
        staleness: dict[str, float] = {}
        if self.ahead is not None:
            staleness = {"rollout/staleness": float(version - drawn.weights_version), **self.ahead.logged()}
        stream = data.further_prompts(rollout, prompts)

        def further(count: int) -> tuple[Sequence[Prompt], Tensor]:
            more = list(islice(stream, count))
            return more, sample_seeds(self.seed, rollout, more, self.plan.samples_per_prompt)

        asks_more = pipeline.sampler.refills or pipeline.advantage.needs_prompt_baseline
        if goes_on and not asks_more:
            self._begin_next(data, rollout + 1)
        experience = pipeline.judge(drawn, forwards, further)
        if goes_on and asks_more:
            self._begin_next(data, rollout + 1)
        return replace(experience, metrics={**staleness, **experience.metrics})

    def asked(self, data: PromptData, rollout: int) -> tuple[Sequence[Prompt], Tensor]:
        """Prompts of a rollout, and the seeds of their samples."""
        prompts = data.train_prompts(rollout, self.plan.prompts_per_rollout)
        return prompts, sample_seeds(self.seed, rollout, prompts, self.plan.samples_per_prompt)

    def save(self, checkpoint: dict[str, Any], rollout: int) -> None:
        """Adds the rollout of this index to a checkpoint that training can go on from, where it has been begun."""
        if self.ahead is not None and is_complete(checkpoint):
            checkpoint["rlhf"]["ahead"] = self.ahead.state_of(rollout)

    def restore(self, checkpoint: Mapping[str, Any], data: PromptData, rollout: int) -> None:
        """Restores what :meth:`save` added.

        Raises:
            ConfigError: If it was drawn for other prompts, or another number of samples.
        """
        state = checkpoint["rlhf"].get("ahead")
        if self.ahead is not None and state is not None:
            self.ahead.restore(state, rollout, *self.asked(data, rollout))

    def _begin_next(self, data: PromptData, following: int) -> None:
        if self.ahead is not None:
            prompts, seeds = self.asked(data, following)
            self.ahead.begin(following, prompts, self.plan.samples_per_prompt, seeds)


def goes_on_after(trainer: Trainer, *, rollout: int, step: int) -> bool:
    """Whether a trainer means to train on another rollout after this one.

    Args:
        trainer: Lightning's.
        rollout: Index of this one.
        step: Updates that will have been made after it.
    """
    epochs, steps = trainer.max_epochs, trainer.max_steps
    return (epochs is None or epochs < 0 or rollout + 1 < epochs) and (steps < 0 or step < steps)


def check_overlap(overlap: int, loss: PolicyLoss) -> None:
    """Refuses what is not known to work, and stale samples that nothing corrects for.

    Raises:
        ConfigError: If ``overlap`` is neither 0 nor 1, or the policy loss takes samples for the policy's own.
    """
    if overlap not in (0, 1):
        raise ConfigError(
            f"overlap must be 0 (sample with the newest weights) or 1 (sample while the rollout before trains), "
            f"got {overlap}"
        )
    if overlap and not loss.corrects_sampler:
        raise ConfigError(
            f"overlap: 1 trains on responses that older weights drew, which policy loss {type(loss).__name__} takes "
            "for the policy's own: wrap it, policy_loss: {name: importance, loss: …}, or take overlap: 0"
        )


def check_version(sampled: int, now: int, *, oldest: int) -> None:
    """Refuses responses of weights that are older than was agreed, or that the policy does not have yet.

    Args:
        sampled: Version of the weights that drew them (updates made before).
        now: The policy's.
        oldest: Least version that is accepted.

    Raises:
        RuntimeError: Naming the versions.
    """
    if not oldest <= sampled <= now:
        late = f", and may be at {oldest} at the oldest" if oldest < now else ""
        raise RuntimeError(f"the sampler used weights of version {sampled}, but the policy is at version {now}{late}")


class Ahead:
    """What is drawn ahead of a run's cursor.

    Args:
        sampler: Draws this rank's share.

    Attributes:
        rollout: Index of the rollout that was begun last; -1 for none.
    """

    def __init__(self, sampler: OverlapSampler) -> None:
        self.sampler, self.rollout = sampler, -1
        self._prompts: Sequence[Prompt] = ()

    def begin(self, rollout: int, prompts: Sequence[Prompt], samples: int, seeds: Tensor) -> None:
        """Starts drawing this rank's share of a rollout."""
        self.rollout, self._prompts = rollout, prompts
        mine, own_seeds = own_part(prompts, samples, seeds)
        self.sampler.begin(mine, samples_per_prompt=samples, seeds=own_seeds)

    def state_of(self, rollout: int) -> dict[str, Any] | None:
        """All ranks' shares of a rollout, once they are there; None if it was not begun. All ranks must call it."""
        own = self.sampler.waiting()
        if own is None or self.rollout != rollout:
            return None
        return state_of(gathered_rollout(own, self._prompts))

    def restore(self, state: Mapping[str, Any], rollout: int, prompts: Sequence[Prompt], seeds: Tensor) -> None:
        """Takes this rank's share of what :meth:`state_of` gave, on whatever number of ranks.

        Raises:
            ConfigError: If this run would draw other samples for that rollout.
        """
        self.rollout, self._prompts = rollout, prompts
        whole = restored(state, prompts, seeds)
        _, own_seeds = own_part(prompts, whole.group_size, seeds)
        self.sampler.put(whole.take_groups(own_share(len(prompts))), own_seeds)

    def logged(self) -> dict[str, float]:
        """How quick the last draw in the background was."""
        name = "speed/rollout_ahead_tokens_per_s"
        return {} if self.sampler.speed is None else {name: self.sampler.speed}


def state_of(rollout: Rollout) -> dict[str, Any]:
    """A rollout as tensors and plain values, for a checkpoint; its prompts by their numbers."""
    numbers = [prompt.index for prompt in rollout.prompts]
    return flat(to_device(replace(rollout, prompts=()), torch.device("cpu"))) | {"prompts": numbers}


def restored(state: Mapping[str, Any], prompts: Sequence[Prompt], seeds: Tensor) -> Rollout:
    """The rollout that :func:`state_of` put down.

    Args:
        state: What it gave.
        prompts: This run's for that rollout.
        seeds: And the seeds of their samples.

    Raises:
        ConfigError: If these are others than the rollout was drawn for.
    """
    tokens = state["tokens"]
    if "lengths" in state:  # of a checkpoint from before fields said their axes
        params = {f"params.{name}": value for name, value in state["params"].items()}
        state = {**state, **params, "mask": torch.arange(tokens.shape[1]) < state["lengths"][:, None]}
    if state["prompts"] != [prompt.index for prompt in prompts] or len(tokens) != len(seeds):
        raise ConfigError(
            f"the checkpoint holds a rollout that was drawn ahead, {len(tokens)} responses to {len(state['prompts'])} "
            f"prompts, but this run draws {len(seeds)} to {len(prompts)}, or to others: resume with the data, "
            "prompts_per_rollout and samples_per_prompt that the run was begun with, or with overlap: 0, which drops it"
        )
    return replace(unflat(Rollout, {**state, "prompts": ()}), prompts=tuple(prompts))


class EndsDraws(Callback):
    """When a fit ends, by whatever, nothing is drawn any more.

    Args:
        sampler: What draws.
    """

    def __init__(self, sampler: OverlapSampler) -> None:
        self.sampler = sampler

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """An error, or a request to stop."""
        self.sampler.drop()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """The end."""
        self.sampler.drop()
