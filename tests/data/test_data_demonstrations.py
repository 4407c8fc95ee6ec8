import json
import logging

import pytest

from rlhf_lightning.data.demonstrations import DemonstrationData
from rlhf_lightning.data.tasks import ChainedArithmetic
from rlhf_lightning.errors import ConfigError, DataError


@pytest.fixture
def bound(tokenizer):
    def make(*, context=None, room=0, **arguments):
        data = DemonstrationData(**arguments)
        data.bind_tokenizer(tokenizer, context_length=context, max_new_tokens=room)
        return data

    return make


@pytest.fixture
def written(tmp_path):
    def write(*rows, name="demos.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


def readable(tokenizer, examples):
    return [(prompt.text, tokenizer.decode(list(tokens))) for prompt, tokens in examples]


def test_examples_are_question_and_answer_with_an_end(bound, listed, tokenizer):
    data = bound(task=listed(["ab", "c"], ["x"]))
    assert sorted(readable(tokenizer, data.train_examples(0, 2))) == [("ab", "AB<eos>"), ("c", "C<eos>")]
    assert [p.text for p in data.held_out_prompts()] == ["x"]


def test_endless_demonstrations_are_cut_to_size(bound):
    data = bound(task=ChainedArithmetic(held_out=16), size=100)
    assert data.size == 100
    assert {p.index for p, _ in data.train_examples(0, 100)} == set(range(100))


def test_examples_are_a_function_of_seed_and_position(bound, listed):
    def texts(start, count, seed=1):
        return [p.text for p, _ in bound(task=listed("abcdefgh", "x"), seed=seed).train_examples(start, count)]

    assert texts(0, 8) + texts(8, 8) == texts(0, 16)
    assert texts(5, 6) == texts(0, 16)[5:11]
    assert sorted(texts(8, 8)) == list("abcdefgh")
    assert texts(0, 8) != texts(0, 8, seed=2)


def test_files_of_prompts_and_responses(bound, written, tokenizer):
    data = bound(path=written({"prompt": "p", "response": "r"}, {"prompt": "q", "response": 7}))
    assert sorted(readable(tokenizer, data.train_examples(0, 2))) == [("p", "r<eos>"), ("q", "7<eos>")]
    assert data.held_out_prompts() == []
    assert data.tasks == {}


def test_files_of_chats(bound, written, tokenizer):
    turns = [("user", "hi"), ("assistant", "yes?"), ("user", "q"), ("assistant", "r")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    data = bound(path=written(row), messages_field="messages", chat=True, system="S")
    assert readable(tokenizer, data.train_examples(0, 1)) == [("[s]S|[u]hi|[a]yes?|[u]q|[a]", "r<eos>")]


def test_held_out_questions_in_the_file_are_left_out(bound, written, listed, caplog):
    path = written({"prompt": "x ", "response": "1"}, {"prompt": "b", "response": "2"})
    with caplog.at_level(logging.WARNING):
        data = bound(task=listed(["a"], ["x"]), path=path)
    assert [p.text for p, _ in data.train_examples(0, 1)] == ["b"]
    assert data.size == 1
    assert "1 of 2 rows" in caplog.text


@pytest.mark.parametrize(
    ("row", "arguments", "said"),
    [
        ({"prompt": "a"}, {}, r"demos\.jsonl, line 2: no field 'response'\. Present: prompt"),
        ({"promt": "a", "response": "b"}, {}, "Did you mean 'promt'"),
        ({"prompt": "a", "response": True}, {}, "field 'response' must be text or a number, got True"),
        ({"prompt": "a", "response": ["b"]}, {}, "field 'response' must be a list of {role, content}, got list"),
    ],
)
def test_bad_rows_are_named(bound, written, row, arguments, said):
    with pytest.raises(DataError, match=said):
        bound(path=written({"prompt": "p", "response": "r"}, row), **arguments)


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ("hi", "line 1: field 'messages' must be a list of {role, content}"),
        ([{"role": "user"}], "must be a list of {role, content}"),
        ([], "must be a list of {role, content}"),
        ([{"role": "user", "content": "q"}], "must end with an assistant's turn"),
        ([{"role": "assistant", "content": "q"}], "after at least one other"),
        (None, "must be a list of {role, content}, got None"),
    ],
)
def test_bad_chats_are_named(bound, written, messages, said):
    with pytest.raises(DataError, match=said):
        bound(path=written({"messages": messages}), messages_field="messages", chat=True)


def test_examples_longer_than_the_context_are_refused_or_left_out(bound, listed, caplog):
    task = listed(["ab", "abcd"], ["x"])  # 4 + 5 tokens with the end
    assert bound(task=task, context=9).size == 2
    with pytest.raises(DataError, match=r"problem t1\): prompt and response have 4 \+ 5 tokens, but the context is 8"):
        bound(task=task, context=8)
    with caplog.at_level(logging.WARNING):
        data = bound(task=task, context=8, drop_long=True)
    assert [p.text for p, _ in data.train_examples(0, 2)] == ["ab", "ab"]
    assert "1 of 2 demonstrations are too long" in caplog.text


def test_prompts_that_leave_no_room_are_refused(bound, listed):
    with pytest.raises(DataError, match=r"'abcd'.*has 4 tokens, but at most 3 fit"):
        bound(task=listed(["abcd"], ["x"]), context=10, room=7)


def test_impossible_arguments_are_refused(listed, written):
    with pytest.raises(ConfigError, match="needs a task or a path"):
        DemonstrationData()
    with pytest.raises(ConfigError, match="size must be at least 1"):
        DemonstrationData(task=listed("a", "b"), size=0)
    with pytest.raises(ConfigError, match="chat: true"):
        DemonstrationData(path=written({}), messages_field="messages")


def test_a_task_without_demonstrations_says_so(bound, listed):
    class Silent(listed):
        def demonstrations(self):
            return iter(())

    with pytest.raises(DataError, match="task listed: there are no demonstrations"):
        bound(task=Silent("a", "b"))


def test_chats_in_other_spellings_and_fields_by_path(bound, written, tokenizer):
    talk = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "r"}]
    data = bound(path=written({"data": {"conversations": talk}}), messages_field="data.conversations", chat=True)
    assert readable(tokenizer, data.train_examples(0, 1)) == [("[u]q|[a]", "r<eos>")]
    turns = {"ask": [{"role": "user", "content": "q"}], "say": [{"role": "assistant", "content": "r"}]}
    data = bound(path=written({"row": turns}), prompt_field="row.ask", response_field="row.say", chat=True)
    assert readable(tokenizer, data.train_examples(0, 1)) == [("[u]q|[a]", "r<eos>")]


def test_bad_rows_are_left_out_if_one_says_so(bound, written, caplog):
    path = written({"prompt": "p", "response": "r"}, {"prompt": "q"})
    with caplog.at_level(logging.WARNING):
        assert bound(path=path, on_bad_row="skip").size == 1
    assert "1 of 2 rows are malformed and left out; the first: " in caplog.text
    with pytest.raises(DataError, match="no demonstration in 1 rows: all are malformed"):
        bound(path=written({"prompt": "q"}), on_bad_row="skip")
    with pytest.raises(ConfigError, match="on_bad_row: there is no 'drop'"):
        bound(path=path, on_bad_row="drop")
