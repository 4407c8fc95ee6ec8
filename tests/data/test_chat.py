from datetime import date

import pytest
from tests.chats import FAMILIES, GEMMA, LLAMA, QWEN, family_tokenizer

from rlhf_lightning.data.demonstrations import DemonstrationData
from rlhf_lightning.data.prompts import PromptData
from rlhf_lightning.data.render import Renderer, end_of_turn
from rlhf_lightning.errors import ConfigError, DataError, ModelSourceError
from rlhf_lightning.types import Problem

TURNS = [{"role": r, "content": c} for r, c in [("system", "Add."), ("user", "1+1"), ("assistant", "2"), ("user", "3")]]


@pytest.mark.parametrize("name", FAMILIES)
def test_an_answer_ends_as_the_template_ends_a_turn(name):
    tokenizer = family_tokenizer(FAMILIES[name])
    renderer = Renderer(tokenizer, chat=True)
    prompts = renderer.render([("t", 0, Problem("p", "1+1"))])
    (response,) = renderer.responses(prompts, ["2"])
    assert tokenizer.convert_ids_to_tokens(list(response)) == ["2", *FAMILIES[name].end_of_turn]
    spoken = [{"role": "user", "content": "1+1"}, {"role": "assistant", "content": "2"}]
    whole = tokenizer.apply_chat_template(spoken, tokenize=False, strftime_now=date(2024, 7, 26).strftime)
    assert whole.startswith(prompts[0].text + tokenizer.decode(list(response)))


@pytest.mark.parametrize("name", FAMILIES)
def test_plain_responses_end_with_the_end_of_the_sequence(name):
    tokenizer = family_tokenizer(FAMILIES[name])
    renderer = Renderer(tokenizer)
    (response,) = renderer.responses(renderer.render([("t", 0, Problem("p", "1+1"))]), ["2"])
    assert response[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("after", "end"),
    [
        (" <s2>", ["<s2>"]),  # a blank before it
        ("<s1><s2>", ["<s1>", "<s2>"]),  # two that stand together
        ("<s1>\n<s2>", ["<s1>"]),  # the conversation's end is not the turn's
        ("|", []),
    ],
)
def test_the_first_special_tokens_behind_the_answer_are_the_turns_end(after, end):
    tokenizer = family_tokenizer(QWEN, template=False)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<s1>", "<s2>"]})
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}" + after + "{% endfor %}"
    assert tokenizer.convert_ids_to_tokens(list(end_of_turn(tokenizer))) == end


def test_without_a_template_or_with_one_that_refuses_there_is_no_end_of_turn():
    assert end_of_turn(family_tokenizer(QWEN, template=False)) == ()
    tokenizer = family_tokenizer(QWEN)
    tokenizer.chat_template = "{{ raise_exception('never') }}"
    assert end_of_turn(tokenizer) == ()


def test_a_template_that_asks_for_the_date_is_told_the_same_on_every_day():
    problem = ("t", 0, Problem("p", "1+1"))
    renderer = Renderer(family_tokenizer(LLAMA), chat=True)
    assert "Today: 26 Jul 2024\n" in renderer.render([problem])[0].text
    for told, shown in [({"strftime_now": "2025-01-31"}, "31 Jan 2025"), ({"date_string": "now"}, "now")]:
        other = Renderer(family_tokenizer(LLAMA), chat=True, chat_template_kwargs=told)
        assert f"Today: {shown}\n" in other.render([problem])[0].text
    with pytest.raises(ConfigError, match="strftime_now must be a date as 2025-01-31, got 'soon'"):
        Renderer(family_tokenizer(LLAMA), chat=True, chat_template_kwargs={"strftime_now": "soon"})


def test_arguments_reach_the_template_and_unknown_ones_are_refused():
    tokenizer = family_tokenizer(QWEN)
    renderer = Renderer(tokenizer, chat=True, chat_template_kwargs={"enable_thinking": False})
    assert renderer.text(Problem("p", "1")).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert Renderer(tokenizer, chat=True).text(Problem("p", "1")).endswith("<|im_start|>assistant\n")
    with pytest.raises(ConfigError, match=r"knows no 'enable_thinkin'\. Did you mean 'enable_thinking'"):
        Renderer(tokenizer, chat=True, chat_template_kwargs={"enable_thinkin": False})
    with pytest.raises(ConfigError, match="so they need chat: true"):
        Renderer(tokenizer, chat_template_kwargs={"enable_thinking": False})


def test_data_modules_tell_the_template(listed):
    settings = {"chat": True, "chat_template_kwargs": {"enable_thinking": False}}
    for data in (PromptData(listed(["a"], ["b"]), **settings), DemonstrationData(listed(["a"], ["b"]), **settings)):
        data.bind_tokenizer(family_tokenizer(QWEN))
        assert data.held_out_prompts()[0].text.endswith("<think>\n\n</think>\n\n")


# ---- prompts as turns -----------------------------------------------------------------------------------------------


def test_a_problem_is_asked_in_text_or_in_turns():
    assert Problem.asking("p", "1+1", "2", {"place": "here"}) == Problem("p", "1+1", "2", {"place": "here"})
    asked = Problem.asking("p", TURNS, "3", {"place": "here"})
    assert (asked.question, asked.answer, asked.metadata["place"]) == ("3", "3", "here")
    assert list(asked.turns) == TURNS
    assert asked.whole_question == "system: Add.\n\nuser: 1+1\n\nassistant: 2\n\nuser: 3"
    assert Problem.asking("p", TURNS[-1:]).whole_question == Problem("p", "3").whole_question == "3"
    assert Problem("p", "3").turns == ()


@pytest.mark.parametrize("asked", [[], 3, None, ["hi"], [{"role": "user"}], [{"role": "user", "content": 3}]])
def test_what_is_neither_text_nor_turns_is_refused(asked):
    with pytest.raises(ValueError, match=r"must be text, or a list of \{role, content\}"):
        Problem.asking("p", asked)


def test_turns_that_the_assistant_ends_are_refused():
    with pytest.raises(ValueError, match="a turn to be answered"):
        Problem.asking("p", TURNS[:3])


def test_turns_go_through_the_template_and_their_own_system_turn_stays():
    text = Renderer(family_tokenizer(QWEN), chat=True, system="Other.").text(Problem.asking("p", TURNS))
    assert text == (
        "<|im_start|>system\nAdd.<|im_end|>\n<|im_start|>user\n1+1<|im_end|>\n<|im_start|>assistant\n2<|im_end|>\n"
        "<|im_start|>user\n3<|im_end|>\n<|im_start|>assistant\n"
    )
    short = Renderer(family_tokenizer(QWEN), chat=True, system="Other.").text(Problem.asking("p", TURNS[-1:]))
    assert short.startswith("<|im_start|>system\nOther.<|im_end|>\n<|im_start|>user\n3")


def test_turns_are_not_lost_without_a_chat():
    with pytest.raises(DataError, match=r"problem p \(f.jsonl, line 3\) is a chat of 4 turns.*set chat: true"):
        Renderer(family_tokenizer(QWEN)).text(Problem.asking("p", TURNS, metadata={"place": "f.jsonl, line 3"}))
    assert Renderer(family_tokenizer(QWEN)).text(Problem.asking("p", TURNS[-1:])) == "3"


def test_a_template_without_a_system_turn_says_so():
    with pytest.raises(ModelSourceError, match="refuses problem p: no system turn"):
        Renderer(family_tokenizer(GEMMA), chat=True, system="Add.").text(Problem("p", "1"))
