import pytest
import torch
from faulty_tasks import Trusted

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.protocols import Scorer
from rlhf_lightning.scorers import FormatScorer, MixtureScorer, VerifierScorer, combine
from rlhf_lightning.types import Scores


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
