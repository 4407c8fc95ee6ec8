"""Metrics of reward models against plain loops, and by hand."""

import math
import random

import pytest
import torch

from reference import reward_metrics as slow
from rlhf_lightning.algorithms.reward_metrics import FirstError, PairwiseAccuracy, RewardMetrics, first_wrong
from rlhf_lightning.reward_types import JudgedGroup, JudgedResponse, Pair, RenderedGroup, ResponseScore, Step
from rlhf_lightning.types import Problem


def rendered(responses, pairs=(), task="math"):
    return RenderedGroup(JudgedGroup(Problem("", ""), task, tuple(responses), pairs), (), (), ())


def random_groups(seed, count=60):
    """Groups of three solutions with one to four steps, and a pair; labels hard."""
    rng = random.Random(seed)
    groups, scores = [], []
    for _ in range(count):
        responses, own = [], []
        for _ in range(3):
            labels = [rng.random() < 0.75 for _ in range(rng.randint(1, 4))]
            responses.append(JudgedResponse("", float(rng.random() < 0.4), tuple(Step(0, float(y)) for y in labels)))
            steps = tuple(rng.gauss(1.5 if y else -1.0, 1.0) for y in labels)
            own.append(ResponseScore(round(rng.gauss(0.0, 1.5) + responses[-1].correct, 1), steps))
        groups.append(rendered(responses, (Pair(0, 1), Pair(2, 0))))
        scores.append(own)
    return groups, scores


def computed(groups, scores, parts=1):
    metrics = RewardMetrics()
    for part in range(parts):
        metrics.update(groups[part::parts], scores[part::parts])
    return metrics.compute()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("parts", [1, 7])
def test_they_are_the_loops(seed, parts):
    groups, scores = random_groups(seed)
    got = computed(groups, scores, parts)
    both = [(r, s) for g, own in zip(groups, scores, strict=True) for r, s in zip(g.group.responses, own, strict=True)]
    finals, right = [s.final for _, s in both], [r.correct == 1.0 for r, _ in both]
    steps = [(list(s.steps), [step.label == 1.0 for step in r.steps]) for r, s in both]
    f1, wrong, clean = slow.process_bench(steps)
    pairs = [(own[p.chosen].final, own[p.rejected].final) for g, own in zip(groups, scores, strict=True)
             for p in g.group.pairs]  # fmt: skip
    losses = [-math.log(slow.sigmoid(z if ok else -z)) for z, ok in zip(finals, right, strict=True)]
    assert got == pytest.approx({
        "held_out/pairwise_accuracy": slow.pairwise_accuracy(pairs),
        "held_out/correctness_accuracy": sum((z > 0) == ok for z, ok in zip(finals, right, strict=True)) / len(right),
        "held_out/auroc": slow.auroc(finals, right),
        "held_out/calibration_error": slow.calibration_error(finals, right, 15),
        "held_out/correctness_loss": sum(losses) / len(losses),
        "held_out/step_f1": slow.wrong_step_f1([z for zs, _ in steps for z in zs], [y for _, ys in steps for y in ys]),
        "held_out/first_error_f1": f1,
        "held_out/first_error_wrong": wrong,
        "held_out/first_error_right": clean,
    }, abs=1e-5)  # fmt: skip


def test_each_task_has_its_own_where_there_are_several():
    math_groups, math_scores = random_groups(0)
    code = [rendered([JudgedResponse("", 1.0), JudgedResponse("", 0.0)], task="code")]
    code_scores = [[ResponseScore(2.0), ResponseScore(3.0)]]
    got = computed([*math_groups, *code], [*math_scores, *code_scores])
    assert got["held_out/auroc/code"] == 0.0
    assert got["held_out/correctness_accuracy/code"] == 0.5
    alone = computed(math_groups, math_scores)
    assert {f"{name}/math": value for name, value in alone.items()}.items() <= got.items()
    assert "held_out/pairwise_accuracy/code" not in got and "held_out/step_f1/code" not in got


def test_what_nothing_was_seen_for_is_left_out():
    assert computed([], []) == {}
    pair = rendered([JudgedResponse("")] * 2, (Pair(0, 1),), task="chat")
    assert computed([pair], [[ResponseScore(1.0), ResponseScore(1.0)]]) == {"held_out/pairwise_accuracy": 0.5}
    right = computed([rendered([JudgedResponse("", 1.0)])], [[ResponseScore(1.0)]])
    assert set(right) == {f"held_out/{n}" for n in ("correctness_accuracy", "calibration_error", "correctness_loss")}


def test_an_outcome_model_has_no_metrics_of_steps():
    solution = rendered([JudgedResponse("", 1.0, (Step(0, 1.0), Step(1, 0.0)))])
    assert not any("step" in name or "error_" in name for name in computed([solution], [[ResponseScore(0.3)]]) if
                   name != "held_out/calibration_error")  # fmt: skip


def test_soft_labels_count_as_right_from_one_half_on():
    group = rendered([JudgedResponse("", 0.5), JudgedResponse("", 0.49)])
    got = computed([group], [[ResponseScore(1.0), ResponseScore(-1.0)]])
    assert got["held_out/correctness_accuracy"] == got["held_out/auroc"] == 1.0
    expected = -(0.5 * math.log(slow.sigmoid(1)) + 0.5 * math.log(slow.sigmoid(-1)))
    expected += -(0.49 * math.log(slow.sigmoid(-1)) + 0.51 * math.log(slow.sigmoid(1)))
    assert got["held_out/correctness_loss"] == pytest.approx(expected / 2)


@pytest.mark.parametrize(
    ("right", "first"),
    [([1, 1], -1), ([1, 0, 1], 1), ([0.4], 0), ([0.5], -1), ([], -1), ([1, None, 0], None), ([0, None], 0)],
)
def test_the_first_wrong_step(right, first):
    assert first_wrong(right) == first


def test_first_error_by_hand():
    metric = FirstError()
    metric.update(torch.tensor([1, 0, -1, -1]), torch.tensor([1, 2, -1, 0]))  # one of three errors found
    metric.update(torch.tensor([2, -1, -1]), torch.tensor([-1, -1, -1]))  # three of four clean ones left alone
    got = metric.compute()
    assert got["wrong"] == pytest.approx(1 / 3) and got["right"] == 0.75
    assert got["f1"] == pytest.approx(2 * (1 / 3) * 0.75 / (1 / 3 + 0.75))


@pytest.mark.parametrize("guess", [-1, 0])
def test_always_the_same_answer_is_worth_nothing(guess):
    metric = FirstError()
    metric.update(torch.full((4,), guess), torch.tensor([-1, -1, 0, 1]) if guess else torch.tensor([-1, -1, 1, 2]))
    assert metric.compute()["f1"] == 0


def test_pairwise_by_hand():
    metric = PairwiseAccuracy()
    metric.update(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.0]))
    metric.update(torch.tensor([-1.0]), torch.tensor([0.0]))
    assert metric.compute() == pytest.approx(1.5 / 3)
