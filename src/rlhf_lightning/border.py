"""Where numbers come in from outside: what each part gave is checked once, and the part is named.

A part that gives another kind of thing, or of another shape, ends the run (:class:`~.errors.PartError`). Of numbers
that are not finite, a scorer's count as failed scores: the response gets the declared failure value, is marked and
counted (``score/failed``, ``score/nonfinite``), and so no NaN reaches a group's statistics. A token that was drawn with
a probability that is none is no sample, and ends the run. All other numbers that are not finite are counted
(``rollout/nonfinite``) and said in a warning with the part's name; the updates that hold them are skipped.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rlhf_lightning.errors import PartError
from rlhf_lightning.types import Advantages, Rewards, Rollout, Scores, StepScores

_log = logging.getLogger(__name__)


def part_name(part: object) -> str:
    """How a message calls a part: its name, or else its class."""
    name = getattr(part, "name", None)
    return name if isinstance(name, str) else type(part).__name__


def checked_tensor(part: str, what: str, given: Any, shape: Sequence[int]) -> Tensor:
    """A dense tensor of real numbers, of that shape.

    Raises:
        PartError: If it is anything else.
    """
    if not isinstance(given, Tensor):
        raise PartError(f"{part} gave {what} as {_kind(given)}, not as a tensor of shape {tuple(shape)}")
    if given.shape != tuple(shape):
        raise PartError(f"{part} gave {what} of shape {tuple(given.shape)}, not {tuple(shape)}")
    if given.is_complex() or given.is_meta or given.layout != torch.strided:
        odd = "complex numbers" if given.is_complex() else "a tensor on meta" if given.is_meta else str(given.layout)
        raise PartError(f"{part} gave {what} as {odd}, not as a dense tensor of real numbers")
    return given


def checked_losses(part: object, name: str, given: Any, shape: Sequence[int]) -> tuple[Tensor, Mapping[str, Tensor]]:
    """The losses a token that a loss gave, and its diagnostics.

    Raises:
        PartError: If it gave something else, or losses that have no gradient.
    """
    said = f"{name}: {type(part).__name__}"
    if not (isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], Mapping)):
        raise PartError(f"{said} gave {_kind(given)}, not (losses, diagnostics): a tensor and a dict of tensors")
    losses, diagnostics = given
    for what, value in {"losses": losses, **diagnostics}.items():
        checked_tensor(said, what, value, shape)
    if torch.is_grad_enabled() and not losses.requires_grad:
        raise PartError(f"{said} gave losses without a gradient, so nothing would train (a detach, or no_grad?)")
    return losses, diagnostics


def checked_scores(scorer: object, given: Any, rollout: Rollout) -> Scores:
    """A scorer's scores of B responses, all of them finite.

    A value or a step's score that is not finite makes the response a failed one: it gets the scorer's
    ``failure_score`` (0 where it declares none) and no step scores. Other parts of a score that are not finite get that
    value too. All of them are marked in ``Scores.nonfinite``.

    Args:
        scorer: Who gave them.
        given: What it gave.
        rollout: The responses.

    Raises:
        PartError: If it is no ``Scores``, or not of B responses.
    """
    name, count = f"scorer {part_name(scorer)}", len(rollout.texts)
    if not isinstance(given, Scores):
        raise PartError(f"{name} gave {_kind(given)}, not Scores(values, parts, failed) of {count} responses")
    if not isinstance(given.parts, Mapping):
        raise PartError(f"{name} gave parts as {_kind(given.parts)}, not as a dict of tensors")
    values = checked_tensor(name, "values", given.values, (count,)).detach().float()
    failed = checked_tensor(name, "failed", given.failed, (count,)).bool().to(values.device)
    parts = {
        part: checked_tensor(name, f"part {part!r}", own, (count,)).detach().to(values)
        for part, own in given.parts.items()
    }
    steps, steps_fine = given.steps, torch.ones_like(failed)
    if steps is not None:
        if not isinstance(steps, StepScores):
            raise PartError(f"{name} gave steps as {_kind(steps)}, not as StepScores(values, ends)")
        checked_tensor(name, "step scores", steps.values, rollout.mask.shape)
        checked_tensor(name, "steps' ends", steps.ends, rollout.mask.shape)
        if bool((steps.ends.bool() & ~rollout.mask.to(steps.ends.device)).any()):
            raise PartError(f"{name} gave steps that end on tokens which the policy did not draw")
        steps_fine = steps.values.isfinite().all(1).to(failed.device)
    fine = values.isfinite() & steps_fine
    odd = ~fine | ~torch.stack([values, *parts.values()]).isfinite().all(0)
    columns = checked_columns(name, given.columns, rollout.mask.shape, rollout.columns)
    odd_before = torch.zeros_like(odd) if given.nonfinite is None else given.nonfinite
    if not odd.any():
        return replace(given, values=values, parts=parts, failed=failed, nonfinite=odd_before, columns=columns)
    instead = float(getattr(scorer, "failure_score", 0.0))
    first = int(odd.nonzero()[0])
    said = f"{name} gave {_first_odd(first, values, parts, steps)} for a response to {rollout.prompt_of(first).task}"
    _log.warning("%s; %d of %d scores are not finite and count as %g", said, int(odd.sum()), count, instead)
    if steps is not None:
        kept = fine.to(steps.ends.device)[:, None]
        steps = StepScores(steps.values.masked_fill(~kept, 0.0), steps.ends & kept)
    return Scores(
        values.masked_fill(~fine, instead),
        {part: own.masked_fill(~(fine & own.isfinite()), instead) for part, own in parts.items()},
        failed | ~fine,
        steps,
        odd | odd_before,
        given.reason or said,
        columns,
    )


def checked_rollout(
    sampler: object, given: Any, prompts: int, samples: int, *, responses: int | None = None
) -> Rollout:
    """A sampler's responses: as many as were asked for, each with a token at least, every token really drawn.

    Raises:
        PartError: If anything is missing, of another shape, or was drawn with a probability that is none.
    """
    name = f"sampler {type(sampler).__name__}"
    if not isinstance(given, Rollout):
        raise PartError(f"{name} gave {_kind(given)}, not a Rollout")
    count = prompts * samples if responses is None else responses
    if len(given.texts) != count or len(given.prompts) != prompts:
        raise PartError(
            f"{name} gave {len(given.texts)} responses to {len(given.prompts)} prompts, not {count} to {prompts}"
        )
    tokens = checked_tensor(name, "tokens", given.tokens, (count, *given.tokens.shape[1:2]))
    mask = checked_tensor(name, "mask", given.mask, tokens.shape)
    logprobs = checked_tensor(name, "log-probs", given.logprobs, tokens.shape)
    checked_tensor(name, "finished", given.finished, (count,))
    if bool((mask.sum(1) == 0).any()):
        raise PartError(f"{name} gave a response without a token; its end-of-sequence token is one of them")
    if bool((tokens[mask] < 0).any()):
        raise PartError(f"{name} gave a negative token id")
    checked_draws(name, torch.where(mask, logprobs, 0.0))
    for what in ("inserted", "counted"):
        if getattr(given, what) is not None:
            checked_tensor(name, what, getattr(given, what), tokens.shape)
    exists = given.exists
    if bool((exists[:, 1:] > exists[:, :-1]).any()):
        raise PartError(
            f"{name} gave a mask with holes: tokens within a response that the policy did not draw must be marked in "
            "Rollout.inserted"
        )
    if given.inserted is not None and bool((given.inserted & mask).any()):
        raise PartError(f"{name} gave tokens that were drawn and inserted at once")
    if given.counted is not None and bool((given.counted & ~mask).any()):
        raise PartError(f"{name} gave tokens that count in the losses, but were not drawn")
    return replace(given, columns=checked_columns(name, given.columns, tokens.shape))


def checked_columns(
    name: str, given: Any, shape: Sequence[int], taken: Mapping[str, Any] | None = None
) -> dict[str, Tensor]:
    """Per-token tensors by name, without gradient.

    Args:
        name: Who gave them.
        given: What it gave.
        shape: (B, T).
        taken: Columns that others gave before.

    Raises:
        PartError: If they are anything else, or one has the name of another's.
    """
    if not isinstance(given, Mapping):
        raise PartError(f"{name} gave columns as {_kind(given)}, not as a dict of tensors")
    if both := sorted(set(given) & set(taken or {})):
        raise PartError(f"{name} gave a column {both[0]!r}, but there is one of that name already: call it otherwise")
    return {column: checked_tensor(name, f"column {column!r}", own, shape).detach() for column, own in given.items()}


def checked_draws(name: str, logprobs: Tensor) -> None:
    """Makes sure that (B, T) tokens were drawn with a probability.

    Raises:
        PartError: If one of the log-probs is not finite.
    """
    odd = ~logprobs.isfinite()
    if bool(odd.any()):
        row, column = odd.nonzero()[0].tolist()
        raise PartError(
            f"{name}: the model's logits are not finite: {int(odd.sum())} of {odd.numel()} tokens were drawn with no "
            f"probability, first token {column} of response {row} (log-prob {float(logprobs[row, column])}). Look at "
            "the weights (a learning rate that is too high, weights in float16), or resume from an earlier checkpoint"
        )


class Border:
    """What is checked of one rollout beside its responses and their scores."""

    def __init__(self) -> None:
        self.nonfinite = 0

    def tensor(self, part: str, what: str, given: Any, shape: Sequence[int], mask: Tensor | None = None) -> Tensor:
        """Floating numbers of that shape, without gradient; those that are not finite (on the mask) are counted.

        Raises:
            PartError: If it is anything else.
        """
        value = checked_tensor(part, what, given, shape).detach()
        value = value if value.is_floating_point() else value.float()
        odd = ~value.isfinite() if mask is None else ~value.isfinite() & mask
        count = int(odd.sum())
        if count:
            self.nonfinite += count
            place = tuple(odd.nonzero()[0].tolist())
            found, total = float(value[place]), odd.numel() if mask is None else int(mask.sum())
            _log.warning("%s gave %s that are not finite: %d of %d, first %g", part, what, count, total, found)
        return value

    def rewards(self, transform: object, given: Any, before: Rewards) -> Rewards:
        """What a reward transform gave."""
        name = f"reward transform {part_name(transform)}"
        if not isinstance(given, Rewards):
            raise PartError(f"{name} gave {_kind(given)}, not Rewards")
        values = self.tensor(name, "rewards", given.values, before.values.shape, before.values.isfinite())
        return replace(given, values=values)

    def advantages(
        self,
        estimator: object,
        given: Any,
        mask: Tensor,
        *,
        with_critic: bool,
        taken: Mapping[str, Tensor] | None = None,
    ) -> Advantages:
        """What an advantage estimator gave."""
        name = f"advantage {type(estimator).__name__}"
        if not isinstance(given, Advantages):
            raise PartError(f"{name} gave {_kind(given)}, not Advantages(values, returns)")
        values, returns = self.tensor(name, "advantages", given.values, mask.shape, mask), None
        if given.returns is not None:
            returns = self.tensor(name, "returns", given.returns, mask.shape, mask)
        elif with_critic:
            raise PartError(f"{name} gave no returns, but there is a critic that learns from them")
        columns = checked_columns(name, given.columns, mask.shape, taken)
        return replace(given, values=values, returns=returns, columns=columns)


def metric_value(metric: object, given: Any) -> float:
    """What a metric gave, as a number; NaN where it has none.

    Raises:
        PartError: If it is no number.
    """
    try:
        return float(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise PartError(f"metric {part_name(metric)} gave {_kind(given)}, not a number") from error


def check_any_succeeded(scores: Scores) -> None:
    """For the first rollout of a fit: scores that all failed are a fault of the set-up, not of the policy.

    Raises:
        PartError: If every response's score failed; says what the first one failed of.
    """
    if len(scores.failed) and bool(scores.failed.all()):
        raise PartError(
            f"every one of the first rollout's {len(scores.failed)} scores failed, so there is nothing to learn from. "
            f"The first: {scores.reason or 'its scorer gave no reason'}"
        )


def _first_odd(row: int, values: Tensor, parts: dict[str, Tensor], steps: StepScores | None) -> str:
    named = {"the value": values, **{f"part {part!r}": own for part, own in parts.items()}}
    found = [f"{float(own[row])} as {name}" for name, own in named.items() if not own[row].isfinite()]
    return found[0] if found or steps is None else "step scores that are not finite"


def _kind(given: Any) -> str:
    if given is None:
        return "None"
    size = f" of {len(given)}" if isinstance(given, list | tuple) else ""
    size = f" of shape {tuple(given.shape)}" if isinstance(given, Tensor) else size
    return f"a {type(given).__name__}{size}"
