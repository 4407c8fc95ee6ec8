from dataclasses import replace

import pytest
import torch
from faulty_tasks import Trusted

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.protocols import Scorer
from rlhf_lightning.scorers import FormatScorer, MixtureScorer, VerifierScorer, combine
from rlhf_lightning.types import Scores, StepScores


class Fixed(Scorer):
    def __init__(self, name, values, failed=None):
        self.name, self.values = name, torch.tensor(values)
        self.failed = torch.tensor(failed or [False] * len(values))

    def __call__(self, rollout):
        return Scores(self.values, {self.name: self.values}, self.failed)


def test_the_sum_is_weighted_and_the_parts_are_not(rollout_of):
    mixture = combine([Fixed("a", [1.0, 2.0]), Fixed("b", [10.0, 20.0], [False, True])], [0.5, 0.1])
    scores = mixture(rollout_of(["x", "y"]))
    assert scores.values.tolist() == pytest.approx([1.5, 3.0])
    assert {name: part.tolist() for name, part in scores.parts.items()} == {"a": [1.0, 2.0], "b": [10.0, 20.0]}
    assert scores.failed.tolist() == [False, True]


def test_weights_default_to_one_and_mixtures_nest(rollout_of):
    inner = combine([Fixed("a", [1.0]), Fixed("b", [2.0])])
    scores = combine([inner, Fixed("c", [4.0])], [2.0, 1.0])(rollout_of(["x"]))
    assert scores.values.tolist() == [10.0]
    assert {name: part.tolist() for name, part in scores.parts.items()} == {
        "mixture": [3.0],
        "mixture/a": [1.0],
        "mixture/b": [2.0],
        "c": [4.0],
    }


class Stepwise(Fixed):
    def __call__(self, rollout):
        ends = torch.tensor([[False, True], [True, True]])
        steps = StepScores(torch.tensor([[0.0, 2.0], [4.0, 6.0]]), ends)
        return Scores(self.values, {self.name: self.values}, self.failed, steps)


def of_two_tokens(rollout):
    wide = torch.ones(len(rollout.texts), 2)
    return replace(rollout, tokens=wide.long(), mask=wide.bool(), logprobs=-wide)


def test_step_scores_are_those_of_the_one_that_gives_them_times_its_weight(rollout_of):
    both = combine([Fixed("a", [1.0, 2.0]), Stepwise("b", [10.0, 20.0])], [1.0, 0.5])
    given = both(of_two_tokens(rollout_of(["x", "y"]))).steps
    assert given.values.tolist() == [[0.0, 1.0], [2.0, 3.0]]
    assert given.ends.tolist() == [[False, True], [True, True]]
    assert combine([Fixed("a", [1.0, 2.0])])(rollout_of(["x", "y"])).steps is None


def test_two_that_give_step_scores_are_refused(rollout_of):
    mixture = combine([Stepwise("a", [1.0, 2.0]), Stepwise("b", [1.0, 2.0])])
    with pytest.raises(ConfigError, match="only one may give step scores, but a and b do"):
        mixture(of_two_tokens(rollout_of(["x", "y"])))


def test_tasks_reach_those_who_ask_for_them(rollout_of):
    mixture = MixtureScorer([VerifierScorer(), FormatScorer(r"[0-9]")])
    mixture.bind({"trusted": Trusted()})
    scores = mixture(rollout_of(["3", "12"], task="trusted"))
    assert scores.values.tolist() == [4.0, 12.0]


def test_formats_must_match_the_whole_response(rollout_of):
    texts = ["<a>\nx</a>", "<a>x</a> ", "x", ""]
    assert FormatScorer("<a>.*</a>")(rollout_of(texts)).values.tolist() == [1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: combine([]), "at least one"),
        (lambda: combine([Fixed("a", [1.0])], [1.0, 2.0]), "2 weights for 1 scorers"),
        (lambda: combine([Fixed("a", [1.0]), Fixed("a", [1.0])]), "more than one is called 'a'"),
        (lambda: FormatScorer("("), "no regular expression"),
    ],
)
def test_bad_arguments_are_refused(make, said):
    with pytest.raises(ConfigError, match=said):
        make()
