"""Dynamic sampling: groups that teach nothing are replaced by groups of other prompts, within a budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from rlhf_lightning.axes import fitted, join, rows_of, take
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional import equal_groups
from rlhf_lightning.protocols import FurtherPrompts, Sampler
from rlhf_lightning.registry import filled, register
from rlhf_lightning.samplers.in_process import InProcessSampler
from rlhf_lightning.samplers.wrappers import SamplerWrapper
from rlhf_lightning.types import Rollout, Scores


@register("sampler", "dynamic")
class DynamicSampler(SamplerWrapper):
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
        super().__init__(filled(type(self), sampler=sampler)["sampler"])
        if self.sampler.refills:
            raise ConfigError("sampler dynamic: the sampler inside is dynamic itself; give it the one that draws")
        self.max_rounds, self.tolerance = max_rounds, tolerance

    @property
    def looks_for_equal_scores(self) -> bool:  # type: ignore[override]
        """Where no difference is borne."""
        return self.tolerance == 0

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
            order = list(range(len(rollout.prompts)))
            for place, group in zip(dead[: len(alive)], alive, strict=True):
                order[place] = len(rollout.prompts) + group
            rollout = join([rollout, fresh]).take_groups(order)
            scores = fitted(take(join([scores, found]), B=rows_of(order, size)), T=rollout.tokens.shape[1])
            dead = dead[len(alive) :]
            counts["rounds"] += 1
            counts["replaced"] += len(alive)
            counts["prompts"] += len(prompts)
            counts["tokens"] += int(fresh.drawn.sum())
        counts["dead_after"] = len(dead)
        logged = {f"refill/{name}": float(count) for name, count in counts.items()}
        return rollout, scores, {**logged, "refill/score_before": mean}

    def _dead(self, scores: Scores, size: int) -> list[int]:
        equal = equal_groups(scores.values, group_size=size, spread=self.tolerance)
        return [group for group, same in enumerate(equal.tolist()) if same]
