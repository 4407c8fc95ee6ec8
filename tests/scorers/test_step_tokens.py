"""A process model's scores on the policy's tokens."""

from dataclasses import replace

import pytest
import torch
from tests.chats import QWEN, family_tokenizer

from rlhf_lightning.reward_types import ResponseScore
from rlhf_lightning.scorers import RewardModelScorer, combine
from rlhf_lightning.scorers._step_tokens import step_scores
from rlhf_lightning.types import Problem, Prompt, Rollout, SamplingParams

PIECES = ["", "3", "+2", "\n=", "5", "\n", "2\n=5", "é"]
"""Token 0 is special and has no text; token 6 completes one step and begins, and completes, the next."""


class Pieces:
    def decode(self, ids, skip_special_tokens):
        assert skip_special_tokens
        return "".join(PIECES[i] for i in ids)

    def batch_decode(self, rows, skip_special_tokens):
        return [self.decode(row, skip_special_tokens) for row in rows]


def rollout(rows: list[list[int]], tokenizer) -> Rollout:
    lengths = torch.tensor([len(row) for row in rows])
    width = int(lengths.max())
    mask = torch.arange(width) < lengths[:, None]
    return Rollout(
        prompts=tuple(Prompt(Problem(f"p{i}", f"{i}+{i}="), "sum", "", (9,), i) for i in range(len(rows))),
        tokens=torch.tensor([[*row, *[0] * (width - len(row))] for row in rows]),
        mask=mask,
        logprobs=torch.zeros(mask.shape),
        finished=torch.ones(len(rows), dtype=torch.bool),
        texts=tuple(tokenizer.batch_decode(rows, skip_special_tokens=True)),
        params=SamplingParams(keep_special_tokens=False),
    )


@pytest.mark.parametrize(
    ("row", "steps", "expected"),
    [
        # 3 +2 ⏎= 5 <eos>: steps "3+2" and "=5"; the last one's verdict is the final score, on <eos>
        ([1, 2, 3, 4, 0], (0.5, -1.0), {1: 0.5, 4: 9.0}),
        # no <eos>: the last step's end is the last token, whose score is the final one
        ([1, 2, 3, 4], (0.5, -1.0), {1: 0.5, 3: 9.0}),
        # a delimiter at the end is no step
        ([1, 2, 5, 0], (0.5,), {3: 9.0}),
        # one token completes the first two steps: the later counts
        ([1, 6, 3, 4, 0], (0.5, -1.0, 2.0), {1: -1.0, 4: 9.0}),
        # nothing but an end
        ([0], (), {0: 9.0}),
        ([7, 7, 0], (0.5,), {2: 9.0}),
    ],
)
def test_each_score_stands_on_the_token_that_completes_its_step(row, steps, expected):
    tokenizer = Pieces()
    placed = step_scores([ResponseScore(9.0, steps)], rollout([row], tokenizer), tokenizer, "\n")
    assert {t: placed.values[0, t].item() for t in placed.ends[0].nonzero().flatten().tolist()} == expected
    assert not placed.values[~placed.ends].any()


def test_a_response_without_scores_has_no_steps_and_padding_none():
    tokenizer = Pieces()
    drawn = rollout([[1, 2, 3, 4, 0], [1, 0]], tokenizer)
    placed = step_scores([None, ResponseScore(2.0, (1.0,))], drawn, tokenizer, "\n")
    assert placed.ends.tolist() == [[False] * 5, [False, True, False, False, False]]
    assert placed.values[1].tolist() == [0.0, 2.0, 0.0, 0.0, 0.0]


@pytest.fixture(scope="module")
def models(tmp_path_factory, make_reward_model):
    folder = tmp_path_factory.mktemp("rm")
    return {
        kind: make_reward_model(folder / kind, seed=1, supervision=kind, **more)
        for kind, more in {"process": {}, "outcome": {}}.items()
    }


def test_a_process_models_steps_are_given_once_the_policys_tokenizer_is_known(models):
    from rlhf_lightning.models import TinyLlama

    tokenizer = TinyLlama(hidden=16, layers=1, heads=2).tokenizer()
    rows = [
        [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id] for text in ("3+2\n=5", "7")
    ]
    drawn = rollout(rows, tokenizer)
    scorer = RewardModelScorer(str(models["process"]), aggregation="min")
    assert scorer(drawn).steps is None
    mixture = combine([scorer], [2.0])
    mixture.bind_tokenizer(tokenizer)
    scores = mixture(drawn)
    assert [row.nonzero().flatten().tolist() for row in scores.steps.ends] == [[2, 6], [1]]
    # "min" is the least of the places' scores, so they are the same numbers
    own = [row[ends].min().item() for row, ends in zip(scores.steps.values, scores.steps.ends, strict=True)]
    assert own == pytest.approx(scores.values.tolist())


def test_an_outcome_model_gives_none(models):
    tokenizer = Pieces()
    scorer = RewardModelScorer(str(models["outcome"]))
    scorer.bind_tokenizer(tokenizer)
    assert scorer(rollout([[1, 2, 0]], tokenizer)).steps is None


def test_special_tokens_count_as_text_where_the_texts_have_them():
    tokenizer = family_tokenizer(QWEN)
    tokens = tokenizer("<think>a\nb</think>c<|im_end|>", add_special_tokens=False)["input_ids"]
    kept = replace(rollout([tokens], tokenizer), texts=("<think>a\nb</think>c",), params=SamplingParams())
    placed = step_scores([ResponseScore(9.0, (0.25, 0.5))], kept, tokenizer, "\n")
    assert placed.values.tolist() == [[0.0, 0.25, 0.0, 0.0, 0.0, 0.0, 9.0]]
