"""Parts that undo each other: told from what each of them declares, before anything is loaded.

What is refused does nothing at all; what is weakened is warned of. Nothing here knows a part by its name: a part of
another package takes part by the attributes of its contract (:mod:`rlhf_lightning.protocols`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence

from rlhf_lightning.data.update_batches import Truncation
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.modules.plan import BatchPlan
from rlhf_lightning.protocols import CHANGES, AdvantageEstimator, PolicyLoss, RewardTransform, Sampler, Scorer

_log = logging.getLogger(__name__)

Stage = RewardTransform | AdvantageEstimator


def check_parts(
    plan: BatchPlan,
    sampler: Sampler,
    *,
    transforms: Sequence[RewardTransform],
    advantage: AdvantageEstimator,
    kl_reward: object | None,
    truncation: Truncation,
    has_critic: bool,
) -> None:
    """All checks of what turns samples into advantages.

    Raises:
        ConfigError: Naming the parts that do not go together.
    """
    check_temperature(sampler)
    check_group_size(plan.samples_per_prompt, [sampler, advantage, *transforms])
    check_estimator(advantage, transforms, kl_reward, has_critic=has_critic)
    check_steps(transforms, advantage, kl_reward, group_size=plan.samples_per_prompt)
    check_lengths(transforms, max_new_tokens=sampler.params.max_new_tokens)
    check_bootstrap(advantage, wanted=truncation.go_on)
    if not truncation.count:
        check_masked(transforms, advantage)


def check_steps(
    transforms: Sequence[RewardTransform], advantage: AdvantageEstimator, kl_reward: object | None, *, group_size: int
) -> None:
    """Refuses a reward transform that a later part takes back, and warns of one that is weakened.

    Raises:
        ConfigError: Naming both, and what to do.
    """
    stages: list[Stage] = [*transforms, advantage]
    for step, following in zip(transforms, stages[1:], strict=True):
        unseen = _unseen(following)
        if kl_reward is not None and following is advantage:
            unseen -= {"scale", "rollout scale"}  # the reward's scale is that by which the KL penalty weighs
        if step.only and step.only <= unseen:
            raise ConfigError(
                f"reward_transforms: {step.name} does nothing before {_name(following)}, which gives the same without "
                "it: leave it out"
            )
        low, high = step.bounds(group_size)
        idle = following.idle_within if isinstance(following, RewardTransform) else None
        if idle is not None and idle[0] <= low and high <= idle[1]:
            raise ConfigError(
                f"reward_transforms: {_name(following)} does nothing after {step.name}, whose rewards are within "
                f"{low:.3g} and {high:.3g} for {group_size} samples a prompt: put it before, or narrow it"
            )
    for place, step in enumerate(transforms):
        if step.unbalances:
            _check_balance(step, [*transforms[place + 1 :], advantage])


def check_lengths(transforms: Sequence[RewardTransform], *, max_new_tokens: int) -> None:
    """Refuses a penalty on lengths that no response can have.

    Raises:
        ConfigError: Naming it, and both lengths.
    """
    for step in transforms:
        if step.acts_beyond >= max_new_tokens:
            raise ConfigError(
                f"reward_transforms: {step.name} begins beyond {step.acts_beyond} tokens, but the sampler's "
                f"max_new_tokens is {max_new_tokens}, so it does nothing: lower its limit, or leave it out"
            )


def check_masked(transforms: Sequence[RewardTransform], advantage: AdvantageEstimator) -> None:
    """For runs whose cut-off responses count in no loss: what acts on them alone acts through other responses at most.

    Raises:
        ConfigError: If nothing compares responses either.
    """
    compares = (
        bool(advantage.invariant_to)
        or advantage.recenters
        or advantage.needs_prompt_baseline
        or any(step.compares for step in transforms)
    )
    for step in transforms:
        if step.only_cut_off:
            said = (
                f"reward_transforms: {step.name} acts on responses that were cut off, which truncated: mask leaves out"
            )
            if not compares:
                raise ConfigError(f"{said} of the loss, so it does nothing: take truncated: keep, or leave it out")
            _log.warning("%s of the loss: it only moves what the other responses are compared with", said)


def warn_of_idle_parts(sampler: Sampler, scorer: Scorer, loss: PolicyLoss, plan: BatchPlan) -> None:
    """Warns of parts that, beside these others, have nothing to do."""
    if sampler.looks_for_equal_scores and scorer.never_equal:
        _log.warning(
            "sampler %s replaces groups whose scores are all the same, which these scorers hardly ever give: set its "
            "tolerance above 0, in the unit of the scores, or it does nothing",
            type(sampler).__name__,
        )
    if loss.needs_moved_policy and plan.steps_per_rollout == 1:
        _log.warning(
            "policy_loss %s holds back what the policy has moved since the rollout, and with one update a rollout it "
            "has not: give updates_per_rollout or epochs_per_rollout above 1",
            type(loss).__name__,
        )
    if sampler.params.top_k == 1:
        _log.warning(
            "sampler %s: top_k is 1, so all samples of a prompt are the greedy response", type(sampler).__name__
        )


def check_scorer_weights(weights: Sequence[float] | None) -> None:
    """Refuses weights of which nothing is left to be optimised.

    Raises:
        ConfigError: If all are 0.
    """
    if weights and not any(weights):
        raise ConfigError("scorer_weights are all 0, so nothing would be optimised: give one of them a weight")


def check_steps_are_scored(advantage: AdvantageEstimator, scorer: Scorer) -> None:
    """Refuses an estimator of step scores without a scorer that gives them.

    Raises:
        ConfigError: If all scorers say that they give none.
    """
    if not advantage.reads_rewards and scorer.gives_steps is False:
        raise ConfigError(
            f"advantage {_name(advantage)} reads the scores of steps, and none of the scorers gives step scores: take "
            "scorer reward_model (or remote) with a model trained with supervision: process"
        )


def _check_balance(step: RewardTransform, later: Sequence[Stage]) -> None:
    for part in later:
        said = (
            f"reward_transforms: {step.name} makes a group's bad responses weigh less than its good ones, and "
            f"{_name(part)} after it"
        )
        instead = "take advantage: reinforce, with the step after all normalization (the paper's), or leave it out"
        if "shift" in _unseen(part):
            raise ConfigError(f"{said} takes each group's mean off again, which undoes that: {instead}")
        if "rollout shift" in _unseen(part) or part.recenters:
            _log.warning(
                "%s takes the mean off again (the rollout's, or a learnt one), which weakens that: %s", said, instead
            )


def _unseen(part: Stage) -> frozenset[str]:
    """What may be done to a part's input without a difference: what holds of each group holds of all alike."""
    return part.invariant_to | {f"rollout {change}" for change in part.invariant_to if f"rollout {change}" in CHANGES}


def _name(part: Stage) -> str:
    return part.name if isinstance(part, RewardTransform) else f"advantage {type(part).__name__}"


def check_group_size(samples_per_prompt: int, parts: Iterable[AdvantageEstimator | RewardTransform | Sampler]) -> None:
    """Refuses group statistics over too few samples.

    Raises:
        ConfigError: Naming the part and the smallest ``samples_per_prompt`` it means anything for.
    """
    for part in parts:
        least = part.min_group_size
        if samples_per_prompt < least:
            raise ConfigError(
                f"samples_per_prompt is {samples_per_prompt}, but {type(part).__name__} compares the samples of a "
                f"prompt with each other and needs at least {least}"
            )


def check_estimator(
    advantage: AdvantageEstimator,
    transforms: Iterable[RewardTransform],
    kl_reward: object | None,
    *,
    has_critic: bool,
) -> None:
    """Refuses transforms, penalties and critics that would do nothing, or something else, with this estimator.

    Raises:
        ConfigError: Naming the parts that do not go together.
    """
    _check_critic(advantage, has_critic=has_critic)
    name = type(advantage).__name__
    idle = ["reward_transforms"] * bool(list(transforms)) + ["kl_reward"] * (kl_reward is not None)
    if idle and not advantage.reads_rewards:
        raise ConfigError(f"{name} reads step scores alone, so {' and '.join(idle)} would do nothing: leave it out")
    comparing = [type(step).__name__ for step in transforms if step.compares]
    if comparing and advantage.needs_prompt_baseline:
        raise ConfigError(
            f"{name} compares samples with a greedy response, which {comparing[0]} would shift against other responses "
            "than the samples: leave it out of reward_transforms"
        )


def check_bootstrap(advantage: AdvantageEstimator, *, wanted: bool) -> None:
    """Refuses to ask a critic what follows responses that were cut off, where nobody would listen.

    Raises:
        ConfigError: Naming the estimator.
    """
    if wanted and not advantage.reads_bootstrap:
        raise ConfigError(
            f"truncated: bootstrap gives what a critic says after the last token, which advantage "
            f"{type(advantage).__name__} does not read: take PPOModule with gae, or truncated: keep or mask"
        )


def check_temperature(sampler: Sampler) -> None:
    """Refuses to train on greedy responses: they are all the same, and log-probs divide by the temperature.

    Raises:
        ConfigError: Naming the temperature.
    """
    temperature = sampler.params.temperature
    if not 0 < temperature < math.inf:
        raise ConfigError(
            f"sampler {type(sampler).__name__}: temperature is {temperature}, but a policy trains on samples, which "
            "need one above 0 (1 is the model's own distribution); held-out responses are greedy whatever it is"
        )


def check_token_budget(token_budget: int, longest_prompt: int, max_new_tokens: int) -> None:
    """Refuses micro-batches that one prompt with one response would not fit.

    Raises:
        ConfigError: With the least that is enough.
    """
    least = longest_prompt + max_new_tokens - 1
    if token_budget < least:
        raise ConfigError(
            f"token_budget is {token_budget}, but a prompt of {longest_prompt} tokens with a response of up to "
            f"{max_new_tokens} takes {least} in a row: make it at least {least}"
        )


def _check_critic(advantage: AdvantageEstimator, *, has_critic: bool) -> None:
    name = type(advantage).__name__
    if advantage.needs_critic and not has_critic:
        raise ConfigError(
            f"advantage {name} needs the values of a critic, and this module has none: take PPOModule, or an advantage "
            "without a critic (group, rloo, reinforce)"
        )
    if has_critic and not advantage.needs_critic:
        raise ConfigError(
            f"PPOModule trains a critic, but advantage {name} gives it no returns to learn from: take gae, or "
            "GRPOModule, which has no critic"
        )
