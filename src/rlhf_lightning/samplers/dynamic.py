"""Dynamic sampling: groups that teach nothing are replaced by groups of other prompts, within a budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional import equal_groups
from rlhf_lightning.holdings import Decoding
from rlhf_lightning.protocols import FurtherPrompts, Sampler
from rlhf_lightning.registry import filled, register
from rlhf_lightning.samplers._groups import replace_groups
from rlhf_lightning.samplers.in_process import InProcessSampler
from rlhf_lightning.types import Prompt, Rollout, SamplingParams, Scores

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


@register("sampler", "dynamic")
class DynamicSampler(Sampler):
    """Another sampler whose dead groups (all scores the same) are replaced by other prompts' (DAPO, arXiv 2503.14476).

    Each round draws as many further prompts as there are dead groups; those that turn out alive take the places, in
    order, and the others are thrown away. A round costs at most one more rollout, so the budget bounds a rollout's cost
    at ``1 + max_rounds`` times the plain one. When it is used up, or the data set has no other prompts, the groups that
    are still dead stay and count as usual (``reward/dead_groups``). Where the paper draws until a batch is full, with
    the prompts it comes to, ours are a function of run seed and rollout, so a resumed run draws the same.

    The group's scores are compared before any reward transform. Logged: ``refill/rounds``, ``refill/dead_before`` and
    ``refill/dead_after`` (groups), ``refill/replaced``, ``refill/prompts`` and ``refill/tokens`` (drawn beyond the
    rollout, kept or not), and ``refill/score_before``, the mean score before anything was replaced: all other means are
    of what is trained on, and dead groups, which are mostly all right or all wrong, are missing there.

    Args:
        sampler: Draws the responses; ``in_process`` when not given.
        max_rounds: Rounds a rollout; at least 1.
        tolerance: Largest difference between the scores of a group that counts as none, in their unit; rounding is
            never a difference.
    """

    refills = True
    min_group_size = 2
    config_defaults: ClassVar[dict[str, Any]] = {"sampler": InProcessSampler}

    def __init__(self, sampler: Sampler | None = None, max_rounds: int = 3, tolerance: float = 0.0) -> None:
        if max_rounds < 1:
            raise ConfigError(f"sampler dynamic: max_rounds must be at least 1, got {max_rounds}")
        if not tolerance >= 0:
            raise ConfigError(f"sampler dynamic: tolerance must not be negative, got {tolerance}")
        self.sampler = filled(type(self), sampler=sampler)["sampler"]
        if self.sampler.refills:
            raise ConfigError("sampler dynamic: the sampler inside is dynamic itself; give it the one that draws")
        self.max_rounds, self.tolerance = max_rounds, tolerance
        self.looks_for_equal_scores = tolerance == 0
        self.params = self.sampler.params

    @property
    def exact(self) -> bool:
        """As the sampler inside."""
        return self.sampler.exact

    @property
    def on_tokens(self) -> Callable[[int], None] | None:  # type: ignore[override]
        """Told by the sampler inside."""
        return self.sampler.on_tokens

    @on_tokens.setter
    def on_tokens(self, told: Callable[[int], None] | None) -> None:
        """Tells the sampler inside."""
        self.sampler.on_tokens = told

    def check(self, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> None:
        """Checks the sampler inside."""
        self.sampler.check(tokenizer, config)

    def bind(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Binds the sampler inside."""
        self.sampler.bind(model, tokenizer)

    def decoding(self) -> Decoding | None:
        """As the sampler inside: rounds come one after another."""
        return self.sampler.decoding()

    def sync(self, weights_version: int) -> None:
        """Syncs the sampler inside."""
        self.sampler.sync(weights_version)

    def hold_weights(self) -> None:
        """Asks the sampler inside."""
        self.sampler.hold_weights()

    def release(self) -> None:
        """Releases the sampler inside."""
        self.sampler.release()

    def wrap_drawing(self, wrapper: Callable[[Sampler], Sampler]) -> Sampler:
        """Wraps the sampler inside: rounds are decided on whole rollouts."""
        self.sampler = self.sampler.wrap_drawing(wrapper)
        return self

    def __call__(
        self,
        prompts: Sequence[Prompt],
        *,
        samples_per_prompt: int,
        seeds: Tensor,
        params: SamplingParams | None = None,
    ) -> Rollout:
        """What the sampler inside draws; nothing is replaced before there are scores."""
        return self.sampler(prompts, samples_per_prompt=samples_per_prompt, seeds=seeds, params=params)

    def refill(
        self, rollout: Rollout, scores: Scores, *, further: FurtherPrompts, score: Callable[[Rollout], Scores]
    ) -> tuple[Rollout, Scores, Mapping[str, float]]:
        """Replaces dead groups while there are any, and rounds and prompts left."""
        size = rollout.group_size
        dead = self._dead(scores, size)
        counts = {"rounds": 0, "dead_before": len(dead), "replaced": 0, "prompts": 0, "tokens": 0}
        mean = float(scores.values.mean())
        while dead and counts["rounds"] < self.max_rounds:
            prompts, seeds = further(len(dead))
            if not prompts:
                break
            fresh = self.sampler(prompts, samples_per_prompt=size, seeds=seeds)
            found = score(fresh)
            useless = set(self._dead(found, size))
            alive = [group for group in range(len(prompts)) if group not in useless]
            rollout, scores = replace_groups((rollout, scores), dead[: len(alive)], (fresh, found), alive)
            dead = dead[len(alive) :]
            counts["rounds"] += 1
            counts["replaced"] += len(alive)
            counts["prompts"] += len(prompts)
            counts["tokens"] += int(fresh.lengths.sum())
        counts["dead_after"] = len(dead)
        logged = {f"refill/{name}": float(count) for name, count in counts.items()}
        return rollout, scores, {**logged, "refill/score_before": mean}

    def _dead(self, scores: Scores, size: int) -> list[int]:
        equal = equal_groups(scores.values, group_size=size, spread=self.tolerance)
        return [group for group, same in enumerate(equal.tolist()) if same]
