"""Contracts of the remaining kinds: KL controllers, scorers, metrics, tasks and model sources."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Mapping, Sequence
from itertools import islice

import torch

from rlhf_lightning.protocols import KLController, Metric, ModelSource, Scorer, Task
from rlhf_lightning.scorers import ScorerWrapper
from rlhf_lightning.testing.report import Check, require_same, require_shape, violated, wraps_all_of
from rlhf_lightning.testing.values import rollout, scores
from rlhf_lightning.types import Problem

FEW = 5
"""Problems of a task that the checks look at one by one."""


def controller_value(make: Callable[[], KLController]) -> None:
    """A finite coefficient that is not negative."""
    value = make().value
    violated(not math.isfinite(value) or value < 0, f"value is {value}")


def controller_direction(make: Callable[[], KLController]) -> None:
    """More KL never lowers the coefficient, and less never raises it."""
    for kl, sign in ((1e3, 1), (0.0, -1)):
        controller = make()
        before = controller.value
        controller.update(kl, 64)
        violated((controller.value - before) * sign < 0, f"KL of {kl} moved it from {before} to {controller.value}")


def controller_bounded(make: Callable[[], KLController]) -> None:
    """Whatever is measured, of however many sequences: finite, not negative, and able to move on."""
    for kl, n_sequences in ((0.0, 10**9), (1e9, 10**9), (math.nan, 64), (math.inf, 64)):
        controller = make()
        moves = _moves(make())
        for _ in range(3):
            controller.update(kl, n_sequences)
        value = controller.value
        violated(not 0 <= value < math.inf, f"a KL of {kl} of {n_sequences} sequences moved it to {value}")
        violated(
            moves and not _moves(controller), f"after a KL of {kl} of {n_sequences} sequences it is {value} for good"
        )


def _moves(controller: KLController) -> bool:
    """Whether a KL far above and far below any target changes the coefficient."""
    seen = {controller.value}
    for kl in (1e9, 0.0):
        controller.update(kl, 64)
        seen.add(controller.value)
    return len(seen) > 1


def controller_resumes(make: Callable[[], KLController]) -> None:
    """``load_state_dict(state_dict())`` brings it back."""
    first, second = make(), make()
    first.update(20.0, 64)
    second.load_state_dict(first.state_dict())
    for controller in (first, second):
        controller.update(3.0, 64)
    violated(first.value != second.value, f"resumed at {second.value}, expected {first.value}")


def scorer_shape(make: Callable[[], Scorer]) -> None:
    """(B,) finite float32 values, parts of the same shape, and which failed; (B, T) step scores, if any."""
    given = rollout()
    found = _bound(make)(given)
    count = len(given.texts)
    require_shape("scores.values", found.values, (count,))
    violated(found.values.dtype != torch.float32, f"scores.values are {found.values.dtype}, expected float32")
    require_shape("scores.failed", found.failed, (count,))
    for name, part in found.parts.items():
        require_shape(f"part {name!r}", part, (count,))
    if found.steps is not None:
        shape = tuple(given.mask.shape)
        require_shape("scores.steps.values", found.steps.values, shape)
        require_shape("scores.steps.ends", found.steps.ends, shape)
        violated((found.steps.ends & ~given.mask).any(), "a step ends off the mask")


def scorer_deterministic(make: Callable[[], Scorer]) -> None:
    """The same rollout has the same scores."""
    require_same("two calls differ", _bound(make)(rollout()).values, _bound(make)(rollout()).values)


def scorer_input_kept(make: Callable[[], Scorer]) -> None:
    """The rollout is not edited."""
    given, kept = rollout(), rollout()
    _bound(make)(given)
    require_same("the call edited tokens", given.tokens, kept.tokens)
    require_same("the call edited logprobs", given.logprobs, kept.logprobs)


def metric_value(make: Callable[[], Metric]) -> None:
    """A finite number under a name, the same each time."""
    metric, given = make(), rollout()
    first = metric(given, scores(given))
    violated(not isinstance(first, int | float) or not math.isfinite(first), f"value is {first!r}, not a finite number")
    violated(first != make()(given, scores(given)), "two calls differ")
    violated(not isinstance(getattr(metric, "name", None), str), "has no name")


def task_disjoint(make: Callable[[], Task]) -> None:
    """Held-out problems never stand among the training ones, by id or by question."""
    task = make()
    held_out, train = task.held_out_problems(), task.train_problems()
    violated(not len(held_out) or not len(train), f"{len(train)} training and {len(held_out)} held-out problems")
    ids, questions = {p.id for p in held_out}, {p.question for p in held_out}
    for problem in train:
        violated(problem.id in ids, f"{problem.id} is both a training and a held-out problem")
        violated(problem.question in questions, f"held-out question among the training ones: {problem.question!r}")


def task_fixed(make: Callable[[], Task]) -> None:
    """The held-out problems are the same in every run."""
    first, second = make().held_out_problems(), make().held_out_problems()
    violated([p.question for p in first] != [p.question for p in second], "held-out problems differ between two runs")


def task_verifies(make: Callable[[], Task]) -> None:
    """Verdicts are finite, the same each time, and no better for an empty response than for the reference answer."""
    task = make()
    for problem in islice(task.held_out_problems(), FEW):
        right, empty = task.verify(problem, problem.answer), task.verify(problem, "")
        violated(not math.isfinite(right) or not math.isfinite(empty), f"{problem.id}: scores {right} and {empty}")
        violated(right != task.verify(problem, problem.answer), f"{problem.id}: two verdicts differ")
        better = bool(problem.answer) and empty >= right
        violated(better, f"{problem.id}: an empty response scores {empty}, the reference answer {right}")


def task_picklable(make: Callable[[], Task]) -> None:
    """Problems can be sent to a verifier's process."""
    for problem in islice(make().held_out_problems(), FEW):
        pickle.dumps(problem)


def source_light(make: Callable[[], ModelSource]) -> None:
    """Configuration and tokenizer agree on the vocabulary, without weights."""
    source = make()
    tokens, rows = len(source.tokenizer()), source.config().vocab_size
    violated(tokens > rows, f"the tokenizer has {tokens} tokens, the model only {rows} rows")


def source_identity(make: Callable[[], ModelSource]) -> None:
    """The identity is a text, the same each time."""
    first, second = make().identity(), make().identity()
    violated(not isinstance(first, str) or not first, f"identity is {first!r}")
    violated(first != second, f"identity changes: {first!r}, {second!r}")


def source_eval(make: Callable[[], ModelSource]) -> None:
    """The model comes in evaluation mode."""
    violated(make().load().training, "the model is in training mode")


CHECKS: Mapping[str, Mapping[str, Check]] = {
    "kl_controller": {
        "value": controller_value,
        "direction": controller_direction,
        "bounded": controller_bounded,
        "resumes": controller_resumes,
    },
    "scorer": {
        "shape": scorer_shape,
        "deterministic": scorer_deterministic,
        "input not edited": scorer_input_kept,
        "wraps all": wraps_all_of(Scorer, ScorerWrapper),
    },
    "metric": {"value": metric_value},
    "task": {
        "training and held-out problems are disjoint": task_disjoint,
        "held-out problems are fixed": task_fixed,
        "verifies": task_verifies,
        "picklable": task_picklable,
    },
    "model_source": {
        "vocabulary": source_light,
        "identity": source_identity,
        "evaluation mode": source_eval,
    },
}
"""The contracts."""


class _TwoTask(Task):
    """The task of the rollout that scorers are checked on: has no problems, and every right answer is known."""

    name = "check"

    def train_problems(self) -> Sequence[Problem]:
        """None."""
        return ()

    def held_out_problems(self) -> Sequence[Problem]:
        """None."""
        return ()

    def verify(self, problem: Problem, response: str) -> float:
        """1 for the reference answer."""
        return float(response == problem.answer)


def _bound(make: Callable[[], Scorer]) -> Scorer:
    scorer = make()
    scorer.bind({"check": _TwoTask()})
    return scorer
