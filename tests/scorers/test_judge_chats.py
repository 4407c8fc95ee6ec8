"""Reward models are asked as they were trained: scores are those of transformers on the whole conversation."""

import json
from datetime import date

import pytest
import torch
from tests.chats import FAMILIES, GEMMA, QWEN, family_reward_model

from rlhf_lightning.errors import ConfigError, ModelSourceError
from rlhf_lightning.models.reward_folder import RewardCard, save_reward_model
from rlhf_lightning.reward_types import JudgedGroup, JudgedResponse
from rlhf_lightning.scorers import RewardModelScorer
from rlhf_lightning.scorers.judge import RewardJudge
from rlhf_lightning.types import Problem

CLOCK = {"strftime_now": date(2024, 7, 26).strftime}
ANSWERS = ("four", "fo", "five. No: four", "")


@torch.no_grad()
def by_transformers(model, tokenizer, turns, **told):
    """The score of one conversation, alone, unpacked."""
    text = tokenizer.apply_chat_template(turns, tokenize=False, **{**CLOCK, **told})
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    hidden = model.model(ids).last_hidden_state[0, -1]
    return float(model.score(hidden))


def scores(judge, problem, *answers, finished=True):
    group = JudgedGroup(problem, "t", tuple(JudgedResponse(text, finished=finished) for text in answers))
    return [score.final for score in judge.score([group])[0]]


def spoken(*turns):
    return [{"role": role, "content": content} for role, content in turns]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_from_elsewhere_is_asked_through_its_template(tmp_path, name, caplog):
    model, tokenizer = family_reward_model(FAMILIES[name], tmp_path)
    judge = RewardJudge(str(tmp_path))
    want = [by_transformers(model, tokenizer, spoken(("user", "2+2"), ("assistant", text))) for text in ANSWERS]
    assert scores(judge, Problem("p", "2+2"), *ANSWERS) == pytest.approx(want, abs=2e-4)
    assert len({round(x, 3) for x in want}) == len(ANSWERS)
    assert "has no reward_model.json: it is asked through its chat template" in caplog.text
    plain = scores(RewardJudge(str(tmp_path), chat=False), Problem("p", "2+2"), *ANSWERS)
    assert max(abs(a - b) for a, b in zip(plain, want, strict=True)) > 0.01


def test_conversations_systems_and_arguments_reach_it(tmp_path):
    model, tokenizer = family_reward_model(QWEN, tmp_path)
    turns = spoken(("user", "2"), ("assistant", "and?"), ("user", "+2"))
    answer = spoken(("assistant", "four"))
    problem = Problem.asking("p", turns)
    (got,) = scores(RewardJudge(str(tmp_path)), problem, "four")
    assert got == pytest.approx(by_transformers(model, tokenizer, turns + answer), abs=2e-4)
    system = spoken(("system", "Be strict."))
    judge = RewardJudge(str(tmp_path), system="Be strict.", chat_template_kwargs={"enable_thinking": False})
    want = by_transformers(model, tokenizer, system + turns + answer, enable_thinking=False)
    assert scores(judge, problem, "four") == [pytest.approx(want, abs=2e-4)]


def test_special_tokens_of_a_response_are_special_to_it(tmp_path):
    model, tokenizer = family_reward_model(QWEN, tmp_path)
    (got,) = scores(RewardJudge(str(tmp_path)), Problem("p", "2+2"), "<think>so</think>four")
    want = by_transformers(model, tokenizer, spoken(("user", "2+2"), ("assistant", "<think>so</think>four")))
    assert got == pytest.approx(want, abs=2e-4)


def test_a_response_that_was_cut_off_has_no_end_of_turn(tmp_path):
    model, tokenizer = family_reward_model(QWEN, tmp_path)
    text = tokenizer.apply_chat_template(spoken(("user", "2+2")), tokenize=False, add_generation_prompt=True) + "fo"
    with torch.no_grad():
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        want = float(model.score(model.model(ids).last_hidden_state[0, -1]))
    assert scores(RewardJudge(str(tmp_path)), Problem("p", "2+2"), "fo", finished=False) == [
        pytest.approx(want, abs=2e-4)
    ]


def test_without_a_template_it_is_asked_in_plain_text(tmp_path, caplog):
    model, tokenizer = family_reward_model(QWEN, tmp_path, template=False)
    ids = torch.tensor([[*tokenizer("2+2four", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]])
    with torch.no_grad():
        want = float(model.score(model.model(ids).last_hidden_state[0, -1]))
    assert scores(RewardJudge(str(tmp_path)), Problem("p", "2+2"), "four") == [pytest.approx(want, abs=2e-4)]
    assert "it is asked in plain text" in caplog.text
    with pytest.raises(ModelSourceError, match="has no chat template, but chat is true"):
        _ = RewardJudge(str(tmp_path), chat=True).renderer


@pytest.mark.parametrize(
    ("card", "end"),
    [({"chat": True}, "<|endoftext|>"), ({"chat": True, "end": "turn"}, "<|im_end|>"), ({"chat": False}, None)],
)
def test_a_card_says_how_it_is_asked(tmp_path, card, end, caplog):
    """Cards from before there was an ``end`` mean the end-of-sequence token, as then."""
    model, tokenizer = family_reward_model(QWEN, tmp_path / "x")
    save_reward_model(model, tokenizer, RewardCard(), tmp_path / "rm")
    (tmp_path / "rm" / "reward_model.json").write_text(json.dumps(card))
    text = "2+2four<|endoftext|>"
    if end:
        asked = tokenizer.apply_chat_template(spoken(("user", "2+2")), tokenize=False, add_generation_prompt=True)
        text = f"{asked}four{end}"
    with torch.no_grad():
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        want = float(model.score(model.model(ids).last_hidden_state[0, -1]))
    assert scores(RewardJudge(str(tmp_path / "rm")), Problem("p", "2+2"), "four") == [pytest.approx(want, abs=2e-4)]
    assert not caplog.text


def test_the_identity_tells_how_it_is_asked(tmp_path):
    family_reward_model(QWEN, tmp_path)
    asked = [RewardJudge(str(tmp_path), **how).identity for how in ({}, {"chat": False}, {"system": "Be strict."})]
    assert len(set(asked)) == 3
    assert RewardJudge(str(tmp_path), chat=True).identity == asked[0]


def test_what_cannot_be_asked_is_told_before_weights(tmp_path):
    family_reward_model(GEMMA, tmp_path)
    with pytest.raises(ModelSourceError, match="no system turn"):
        RewardModelScorer(str(tmp_path), system="Be strict.").check()
    with pytest.raises(ConfigError, match="knows no 'enable_thinking'"):
        RewardModelScorer(str(tmp_path), chat_template_kwargs={"enable_thinking": False}).check()
    with pytest.raises(ConfigError, match="so it needs chat: true"):
        RewardModelScorer(str(tmp_path), chat=False, system="Be strict.").check()
    RewardModelScorer(str(tmp_path)).check()
