"""Preference pairs in their published formats, with rows of our own."""

import json
import logging

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlhf_lightning.data.judged import render_groups
from rlhf_lightning.data.render import Renderer
from rlhf_lightning.data.reward_sources.preferences import Preferences
from rlhf_lightning.errors import ConfigError, DataError
from rlhf_lightning.reward_types import JudgedResponse, Pair


@pytest.fixture
def opened(tmp_path):
    def make(rows, *, chat=False, **arguments):
        path = tmp_path / "pairs.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        source = Preferences(str(path), **arguments)
        source.open(chat=chat)
        return source

    return make


def turns(*contents, first="user"):
    roles = ["user", "assistant"] if first == "user" else ["assistant", "user"]
    return [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]


def summary(group):
    return group.problem.question, group.problem.metadata.get("messages"), [r.text for r in group.responses]


HH = {
    "chosen": "\n\nHuman: Is tea hot?\n\nAssistant: Often.\n\nHuman: Now?\n\nAssistant: I can't tell.\n\nIt may be.",
    "rejected": "\n\nHuman: Is tea hot?\n\nAssistant: Often.\n\nHuman: Now?\n\nAssistant: No",
}
HH_TURNS = turns("Is tea hot?", "Often.", "Now?")
ULTRA = {
    "prompt": "Name a colour",
    "prompt_id": "7f3a",
    "messages": turns("Name a colour", "Red."),
    "chosen": turns("Name a colour", "Red."),
    "rejected": turns("Name a colour", "Seven."),
    "score_chosen": 8.5,
    "score_rejected": 2.0,
}


def test_hh_in_a_chat_is_turns_with_blanks_taken_off(opened):
    source = opened([HH], chat=True, preset="hh", label="chat")
    group = source.group(0)
    assert summary(group) == ("Now?", HH_TURNS, ["I can't tell.\n\nIt may be.", "No"])
    assert group.pairs == (Pair(0, 1, 0.0),)
    assert group.task == "chat"
    assert group.responses[0] == JudgedResponse("I can't tell.\n\nIt may be.")
    assert source.counts() == {"responses": 2, "pairs": 1, "labelled steps": 0}


def test_hh_as_plain_text_is_kept_as_it_is(opened):
    question, _, responses = summary(opened([HH], preset="hh").group(0))
    assert question == "\n\nHuman: Is tea hot?\n\nAssistant: Often.\n\nHuman: Now?\n\nAssistant:"
    assert responses == [" I can't tell.\n\nIt may be.", " No"]
    assert [question + response for response in responses] == [HH["chosen"], HH["rejected"]]


def test_a_question_is_the_same_plain_in_a_dialogue_and_in_turns(opened):
    dialogue = {name: f"\n\nHuman: Name  a colour\n\nAssistant: {name}" for name in ("chosen", "rejected")}
    plain = {"prompt": "Name a colour\n", "chosen": "a", "rejected": "b"}
    keys = {
        opened([dialogue], preset="hh").question_key(0),
        opened([dialogue], preset="hh", chat=True).question_key(0),
        opened([ULTRA], preset="ultrafeedback").question_key(0),
        opened([plain]).question_key(0),
    }
    assert len(keys) == 1
    assert opened([HH], preset="hh").question_key(0) not in keys


def test_ultrafeedback_is_conversations_with_scores(opened):
    source = opened([ULTRA], chat=True, preset="ultrafeedback", score_margin=0.5)
    group = source.group(0)
    assert summary(group) == ("Name a colour", turns("Name a colour"), ["Red.", "Seven."])
    assert group.problem.id == "7f3a"
    assert group.pairs == (Pair(0, 1, 3.25),)
    assert opened([ULTRA], preset="ultrafeedback").group(0).pairs == (Pair(0, 1, 0.0),)
    assert summary(opened([ULTRA], preset="ultrafeedback").group(0))[0] == "Name a colour"


def test_ultrafeedback_without_its_ids_is_named_by_its_rows(opened):
    group = opened([{key: value for key, value in ULTRA.items() if key != "prompt_id"}], preset="ultrafeedback").group(
        0
    )
    assert group.problem.question == "Name a colour" and group.problem.id.endswith(":1")


def test_ultrafeedback_from_parquet(tmp_path):
    pq.write_table(pa.Table.from_pylist([ULTRA, ULTRA | {"score_rejected": 9.0}]), tmp_path / "train.parquet")
    source = Preferences(str(tmp_path), preset="ultrafeedback", score_margin=1.0, on_bad_row="skip")
    source.open(chat=True)
    assert [summary(source.group(i)) for i in range(len(source))] == [
        ("Name a colour", turns("Name a colour"), ["Red.", "Seven."])
    ]
    assert source.skipped == 1


def test_a_conversation_goes_through_the_template(opened, tokenizer):
    group = opened([HH], chat=True, preset="hh").group(0)
    (rendered,) = render_groups(Renderer(tokenizer, chat=True), [group])
    assert tokenizer.decode(list(rendered.prompt)) == "[u]Is tea hot?|[a]Often.|[u]Now?|[a]"
    assert tokenizer.decode(list(rendered.responses[1])) == "No<eos>"


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, ("q", None, ["a", "b"])),
        ({"prompt": turns("q"), "chosen": "a", "rejected": "b"}, ("q", turns("q"), ["a", "b"])),
        ({"messages": turns("p", "o", "q"), "chosen": "a", "rejected": "b"}, ("q", turns("p", "o", "q"), ["a", "b"])),
        (
            {"prompt": turns("q"), "chosen": turns("a", first="assistant"), "rejected": turns("b", first="assistant")},
            ("q", turns("q"), ["a", "b"]),
        ),
        ({"chosen": turns("q", "a"), "rejected": turns("q", "b")}, ("q", turns("q"), ["a", "b"])),
        (
            {"prompt": "ignored", "chosen": turns("q", "a"), "rejected": turns("q", "b")},
            ("q", turns("q"), ["a", "b"]),
        ),
    ],
)
def test_plain_rows_in_all_their_shapes(opened, row, expected):
    assert summary(opened([row], chat=True).group(0)) == expected


def test_margins(opened):
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "margin": 0.5, "gap": 2}
    assert opened([row]).group(0).pairs == (Pair(0, 1, 0.5),)
    assert opened([row], margin_field="gap").group(0).pairs == (Pair(0, 1, 2.0),)
    assert opened([row | {"margin": None}]).group(0).pairs == (Pair(0, 1, 0.0),)


BAD = [
    ({"prompt": "q", "chosen": "a"}, {}, "no field 'rejected'. Present: prompt, chosen"),
    ({"chosen": "a", "rejected": "b"}, {}, "no field 'prompt'. Present: chosen, rejected"),
    ({"prompt": "q", "chosen": "a", "rejected": "a"}, {}, "field 'rejected' must be another response than 'chosen'"),
    ({"prompt": "q", "chosen": True, "rejected": "a"}, {}, "field 'chosen' must be text, got True"),
    ({"prompt": "q", "chosen": [], "rejected": "a"}, {}, "field 'chosen' must be a list of {role, content}, got list"),
    (
        {"prompt": "q", "chosen": turns("a"), "rejected": "b"},
        {},
        "field 'chosen' must be turns of which the last is the assistant's",
    ),
    (
        {"chosen": turns("q", "a"), "rejected": turns("r", "b")},
        {},
        "field 'rejected' must be the same turns as",
    ),
    (
        {"prompt": "q", "chosen": "a", "rejected": "b", "margin": -1},
        {},
        "field 'margin' must be a number from 0 on, got -1",
    ),
    (
        {"prompt": "q", "chosen": "a", "rejected": "b", "margin": "big"},
        {},
        "field 'margin' must be a number from 0 on, got 'big'",
    ),
    (
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"margin_field": "gap"},
        "no field 'gap'. Present: prompt, chosen, rejected",
    ),
    (
        {"messages": turns("p", "o", "q"), "chosen": "a", "rejected": "b"},
        {},
        "the prompt is a conversation of 3 turns, but plain prompts are one text; set data's chat: true",
    ),
    (
        HH | {"rejected": "\n\nHuman: Hi\n\nAssistant: No"},
        {"preset": "hh"},
        "field 'rejected' must be the same dialogue",
    ),
    (HH | {"chosen": "Is tea hot?"}, {"preset": "hh"}, "field 'chosen' must be a dialogue"),
    (HH | {"chosen": HH["chosen"] + "\n\nHuman: ok"}, {"preset": "hh"}, "field 'chosen' must be a dialogue"),
    (ULTRA | {"chosen": "Red."}, {"preset": "ultrafeedback"}, "field 'chosen' must be a conversation of"),
    (
        ULTRA | {"score_chosen": 1},
        {"preset": "ultrafeedback", "score_margin": 1.0},
        "field 'score_chosen' must be at least score_rejected (2.0), got 1",
    ),
    (
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"score_margin": 1.0},
        "no field 'score_chosen'. Did you mean 'chosen'? Present: prompt, chosen, rejected",
    ),
]


@pytest.mark.parametrize(("row", "arguments", "message"), BAD)
def test_a_bad_row_is_refused_with_its_place_or_skipped(opened, row, arguments, message, caplog):
    good = {"hh": HH | {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}}
    fine = good.get(arguments.get("preset", ""), ULTRA | {"prompt": "q", "gap": 1, "margin": 0})
    with pytest.raises(DataError) as refused:
        opened([fine, row], **arguments)
    assert f"pairs.jsonl, line 2: {message}" in str(refused.value)
    with caplog.at_level(logging.WARNING):
        source = opened([fine, row, fine], **arguments, on_bad_row="skip")
    assert (len(source), source.skipped) == (2, 1)
    assert message in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "hhh"}, "preset: there is no 'hhh'. Did you mean 'hh'"),
        ({"score_margin": -1.0}, "score_margin must be at least 0, got -1.0"),
        ({"score_margin": 1.0, "margin_field": "m"}, "give margin_field or score_margin, not both"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        Preferences("no-such.jsonl", **arguments)


def test_ties_are_left_out_and_counted_unless_wanted(opened):
    tie = ULTRA | {"score_chosen": 2.0}
    source = opened([ULTRA, tie, tie], preset="ultrafeedback")
    assert (len(source), source.counts()["ties left out"], source.skipped) == (1, 2, 0)
    kept = opened([ULTRA, tie], preset="ultrafeedback", keep_ties=True, score_margin=1.0)
    assert [kept.group(i).pairs[0].margin for i in range(len(kept))] == [6.5, 0.0]
    assert "ties left out" not in kept.counts()
    rated = {"prompt": "q", "chosen": "a", "rejected": "b", "rating": {"a": 3, "b": 3}}
    assert len(opened([rated])) == 1
    with pytest.raises(DataError, match="no group in 1 rows: none holds anything to learn from; 1 ties left out"):
        opened([rated], score_fields=("rating.a", "rating.b"))
    with pytest.raises(DataError, match=r"no field 'rating.c'"):
        opened([rated], score_fields=("rating.a", "rating.c"))
    unscored = ULTRA | {"score_chosen": None, "score_rejected": None}
    assert len(opened([unscored], preset="ultrafeedback")) == 1


def test_pairs_under_other_names_and_in_other_spellings(opened):
    told = [{"role": "user", "content": [{"type": "text", "value": "q"}], "weight": 0.0}]
    better = [*told, {"role": "assistant", "content": [{"type": "text", "value": "a"}], "weight": 1.0}]
    worse = [*told, {"role": "assistant", "content": [{"type": "text", "value": "b"}], "weight": 1.0}]
    named = {"chosen_field": "chosen_messages", "rejected_field": "rejected_messages"}
    source = opened([{"chosen_messages": better, "rejected_messages": worse}], chat=True, **named)
    assert summary(source.group(0)) == ("q", turns("q"), ["a", "b"])
    spoken = {"talk": [{"from": "human", "value": "q"}]} | {
        name: {"from": "gpt", "value": text} for name, text in (("chosen", "a"), ("rejected", "b"))
    }
    assert summary(opened([spoken], chat=True, prompt_field="talk").group(0)) == ("q", turns("q"), ["a", "b"])


@pytest.mark.parametrize("chat", [False, True])
def test_published_pairs_are_read_by_configuration_alone(published, chat):
    source = Preferences(str(published / "hh_harmless_base_test_150.jsonl.gz"), preset="hh")
    source.open(chat=chat)
    assert (len(source), source.skipped) == (150, 0)
    named = {"chosen_field": "chosen_messages", "rejected_field": "rejected_messages"}
    source = Preferences(str(published / "v1_dpo_demo.jsonl"), **named)
    if chat:
        source.open(chat=True)
        assert len(source) == 10
        assert all(source.group(i).problem.turns[0]["role"] == "system" for i in range(3))
    else:
        with pytest.raises(DataError, match="line 1: the prompt is a conversation of 2 turns"):
            source.open()
