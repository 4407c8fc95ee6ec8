"""The data module of judged responses: its order, its split, what fits, and its batches."""

import json
import logging
import re
from collections import Counter

import pytest
from lightning.pytorch import LightningModule, Trainer

from rlhf_lightning.data.judged import RenderedGroups
from rlhf_lightning.data.render import Renderer
from rlhf_lightning.data.reward_data import RewardData
from rlhf_lightning.data.reward_sources.responses import Demonstrations, Solutions
from rlhf_lightning.data.rows import question_number
from rlhf_lightning.data.tasks import ChainedArithmetic
from rlhf_lightning.errors import ConfigError, DataError, ModelSourceError, PartError
from rlhf_lightning.protocols import RewardSource
from rlhf_lightning.reward_types import JudgedGroup, JudgedResponse, Pair, Step
from rlhf_lightning.types import Problem


class Given(RewardSource):
    """A source of given groups, or one group a question; tells how it was opened and what was read."""

    def __init__(self, label, groups):
        self.label, self.opened, self.read = label, [], []
        self._groups = [g if isinstance(g, JudgedGroup) else asked(g, label) for g in groups]

    def open(self, *, delimiter="\n", chat=False):
        self.opened.append((delimiter, chat))

    def __len__(self):
        return len(self._groups)

    def group(self, index):
        self.read.append(index)
        return self._groups[index]

    def question_key(self, index):
        return question_number(self._groups[index].problem)


def asked(question, label="math", *responses, **problem):
    answers = tuple(JudgedResponse(text) for text in responses or ("y", "n"))
    pairs = (Pair(0, 1),) if len(answers) > 1 else ()
    return JudgedGroup(Problem(question, question, **problem), label, answers, pairs)


@pytest.fixture
def bound(tokenizer):
    def make(*sources, context=None, **arguments):
        data = RewardData(list(sources), **arguments)
        data.bind_tokenizer(tokenizer, context)
        return data

    return make


def numbers(start, count):
    return [f"q{i}" for i in range(start, start + count)]


def questions(groups):
    return [group.group.problem.question for group in groups]


def test_groups_are_rendered_with_an_end_where_they_finished(bound, tokenizer):
    group = JudgedGroup(Problem("1", "ab"), "math", (JudgedResponse("c"), JudgedResponse("de", finished=False)))
    (rendered,) = bound(Given("math", [group]), held_out_fraction=0.0).train_groups(5, 1)
    assert rendered.group is group
    assert tokenizer.decode(list(rendered.prompt)) == "ab"
    assert [tokenizer.decode(list(tokens)) for tokens in rendered.responses] == ["c<eos>", "de"]


def test_the_order_is_a_function_of_seed_and_position(bound):
    def made(**arguments):
        return bound(Given("a", numbers(0, 30)), Given("b", numbers(50, 20)), **arguments)

    whole = questions(made().train_groups(0, 120))
    assert questions(made().train_groups(0, 60)) + questions(made().train_groups(60, 60)) == whole
    assert questions(made().train_groups(37, 5)) == whole[37:42]
    assert questions(made(seed=2).train_groups(0, 120)) != whole


def test_each_source_goes_through_all_its_groups_before_it_repeats_one(bound):
    data = bound(Given("a", numbers(0, 12)), Given("b", numbers(50, 30)), proportions=[1, 2], held_out_fraction=0.0)
    drawn = questions(data.train_groups(0, 90))
    first = [question for question in drawn if int(question[1:]) < 50]
    second = [question for question in drawn if int(question[1:]) >= 50]
    assert sorted(first[:12]) == sorted(first[12:24]) == sorted(numbers(0, 12))
    assert sorted(second[:30]) == sorted(second[30:60]) == sorted(numbers(50, 30))
    assert first[:12] != first[12:24]


def test_batches_have_the_proportions_asked_for(bound):
    sources = [Given("chat", numbers(0, 9)), Given("math", numbers(100, 90)), Given("code", numbers(300, 5))]
    data = bound(*sources, proportions=[0.4, 0.3, 0.3])
    for batch in range(8):
        assert Counter(g.group.task for g in data.train_groups(20 * batch, 20)) == {"chat": 8, "math": 6, "code": 6}


def test_without_proportions_every_group_counts_the_same(bound):
    data = bound(Given("a", numbers(0, 10)), Given("b", numbers(50, 30)), held_out_fraction=0.0)
    assert data.shares == (0.25, 0.75)
    assert sorted(questions(data.train_groups(0, 40))) == sorted(numbers(0, 10) + numbers(50, 30))


def test_held_out_questions_never_meet_training_ones_in_any_source(bound):
    again = [asked(f" q{i}\n", "b", "other") for i in range(100)]
    talked = [asked("x", "c", metadata={"messages": [{"role": "user", "content": f"q{i}"}]}) for i in range(100)]
    data = bound(Given("a", numbers(0, 100) * 2), Given("b", again), Given("c", talked), held_out_fraction=0.2)
    held_out = {question_number(g.group.problem) for g in data.held_out_groups()}
    trained = {question_number(g.group.problem) for g in data.train_groups(0, 4 * data.size)}
    assert not held_out & trained
    assert len(held_out | trained) == 100
    assert 8 <= len(held_out) <= 35
    assert len(data.held_out_groups()) == 4 * len(held_out)
    assert data.size == 4 * len(trained)


def test_the_first_held_out_groups_are_of_all_sources(bound):
    data = bound(Given("a", numbers(0, 300)), Given("b", numbers(500, 100)), held_out_fraction=0.5)
    tasks = [g.group.task for g in data.held_out_groups()]
    share = tasks.count("b") / len(tasks)
    for first in (8, 20, 50):
        assert abs(tasks[:first].count("b") - first * share) <= 1


def test_the_split_depends_on_question_and_seed_alone(bound):
    def held_out(questions_, **arguments):
        data = bound(Given("a", questions_), held_out_fraction=0.3, **arguments)
        return set(questions(data.held_out_groups()))

    everything = held_out(numbers(0, 200))
    assert held_out(numbers(0, 200)[::-1]) == everything
    assert held_out(numbers(0, 100)) == everything & set(numbers(0, 100))
    assert held_out(numbers(0, 200), seed=2) != everything


def test_each_source_has_a_held_out_question_unless_none_is_wanted(bound):
    sources = Given("a", numbers(0, 3)), Given("b", numbers(9, 2))
    assert Counter(g.group.task for g in bound(*sources, held_out_fraction=1e-6).held_out_groups()) == {"a": 1, "b": 1}
    none = bound(*sources, held_out_fraction=0.0)
    assert none.held_out_groups() == []
    assert none.size == 5
    with pytest.raises(DataError, match="source b has 1 groups, all of them held out"):
        bound(Given("a", numbers(0, 3)), Given("b", ["only"]))
    with pytest.raises(DataError, match="source b has no groups"):
        bound(Given("a", numbers(0, 3)), Given("b", []))


def test_groups_that_are_too_long_are_refused_by_name(bound):
    fits, long = asked("abc", "math", "de"), asked("abcd", "math", "e", "de", metadata={"place": "f.jsonl, line 3"})
    assert bound(Given("math", [fits] * 3), context=6, held_out_fraction=0.0).size == 3
    wanted = r"'abcd' \(task math, problem abcd, f.jsonl, line 3\).* have 4 \+ 3 tokens, but at most 6 fit"
    for limits in ({"context": 6}, {"max_tokens": 6}, {"context": 50, "max_tokens": 6}):
        with pytest.raises(DataError, match=wanted):
            bound(Given("math", [fits, long]), held_out_fraction=0.0, **limits)


def test_groups_that_are_too_long_are_left_out_when_asked(bound, caplog):
    groups = [asked(f"{i}" * (1 + 5 * (i % 2)), "math") for i in range(10)]
    with caplog.at_level(logging.WARNING):
        data = bound(Given("math", groups), context=6, drop_long=True, held_out_fraction=0.0)
    assert data.size == 5
    assert set(questions(data.train_groups(0, 20))) == {"0", "2", "4", "6", "8"}
    assert "10 of 20 responses, and 5 of 10 groups of math, are too long and left out" in caplog.text
    with pytest.raises(DataError, match="every group of source math is longer than 2 tokens"):
        bound(Given("math", groups), context=2, drop_long=True, held_out_fraction=0.0)


def test_large_sources_are_looked_at_in_part_and_the_rest_when_drawn(bound):
    groups = [asked(f"{i:05}", "math") for i in range(5000)]
    source = Given("math", [*groups[:1], asked("0" * 9, "math"), *groups[1:]])
    data = bound(source, context=8, held_out_fraction=0.0)
    assert len(source.read) <= 256
    with pytest.raises(DataError, match=r"'000000000'.* have 9 \+ 2 tokens"):
        data.train_groups(0, 5001)


def test_only_the_responses_that_are_too_long_are_left_out(bound):
    responses = tuple(JudgedResponse(text, correct) for text, correct in (("abc", None), ("d", 1.0), ("e", 0.0)))
    pairs = (Pair(0, 1), Pair(1, 2, 0.5), Pair(2, 0))
    data = bound(
        Given("math", [JudgedGroup(Problem("1", "qq"), "math", responses, pairs)]),
        Given("none", [JudgedGroup(Problem("2", "qq"), "none", responses[:1] * 2), asked("r")]),
        context=4,
        drop_long=True,
        held_out_fraction=0.0,
    )
    assert data.size == 2
    first = next(g for g in data.train_groups(0, 2) if g.group.task == "math")
    assert first.group == JudgedGroup(Problem("1", "qq"), "math", responses[1:], (Pair(0, 1, 0.5),))
    assert [len(tokens) for tokens in first.responses] == [2, 2]
    assert len(first.step_ends) == 2


def test_small_sets_are_rendered_once_and_large_ones_stream(tokenizer):
    source = Given("math", [asked("ab", "math", "c", "d"), asked("efg", "math", "h"), asked("i", "math", "j")])
    groups = RenderedGroups(Renderer(tokenizer), [source], keep_tokens=7)  # they have 6, 5 and 3 tokens
    first = groups([(0, 2), (0, 0), (0, 2)])
    assert source.read == [0, 2]
    assert questions(first) == ["i", "ab", "i"]
    assert groups([(0, 2), (0, 0)]) == [first[0], first[1]]
    assert source.read == [0, 2, 2]
    assert groups([(0, 0), (0, 1), (0, 1)])[1].group is source.group(1)
    assert source.read == [0, 2, 2, 1, 1]


def test_sources_are_opened_once_with_delimiter_and_chat(tokenizer):
    source = Given("math", numbers(0, 5))
    data = RewardData([source], chat=True, system="S", delimiter=";")
    assert source.opened == []
    data.bind_tokenizer(tokenizer)
    data.bind_tokenizer(tokenizer, 64)
    assert source.opened == [(";", True)]
    assert tokenizer.decode(list(data.train_groups(0, 1)[0].prompt)).startswith("[s]S|[u]q")


def test_what_cannot_be_is_refused_before_anything_is_read():
    source = Given("math", numbers(0, 5))
    for arguments, message in (
        ({"sources": []}, "sources must name at least one"),
        ({"proportions": [0.5, 0.5]}, "proportions has 2 numbers for 1 sources"),
        ({"proportions": [0.0]}, "proportions must be positive"),
        ({"max_tokens": 0}, "max_tokens must be at least 1, got 0"),
        ({"held_out_fraction": 1.0}, r"held_out_fraction must be in \[0, 1\), got 1.0"),
        ({"delimiter": ""}, "delimiter, what stands between two steps, must not be empty"),
        ({"eval_batch_size": 0}, "eval_batch_size must be at least 1, got 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            RewardData(**{"sources": [source]} | arguments)
    with pytest.raises(RuntimeError, match="bind_tokenizer"):
        RewardData([source]).train_groups(0, 1)


def test_a_tokenizer_without_a_template_is_refused(tokenizer_of):
    with pytest.raises(ModelSourceError, match="no chat template"):
        RewardData([Given("chat", ["q"])], chat=True).bind_tokenizer(tokenizer_of())


def test_sources_are_described_in_a_line_each(bound, tmp_path):
    rows = [
        {"task": "sums", "id": f"p{i}", "question": f"{i}?", "response": "a\nb", "correct": 1, "steps": steps}
        for i, steps in enumerate([[{"end": 1, "label": 1}], [], [], [{"end": 1, "label": 0}, {"end": 3, "label": 0}]])
    ]
    path = tmp_path / "s.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"task": "sums"}]))
    task = ChainedArithmetic(held_out=4, train_size=8)
    sources = Demonstrations(task, size=40), Solutions(str(path), label="files", on_bad_row="skip")
    data = bound(*sources, proportions=[3, 1], held_out_fraction=0.0)
    assert data.describe().splitlines() == [
        "chained_arithmetic: 8 groups to train on, 0 held out, 40 responses, 80 labelled steps, 75.0 % of every batch",
        "files: 4 groups to train on, 0 held out, 4 responses, 3 labelled steps, 1 malformed rows left out, "
        "25.0 % of every batch",
    ]


class Module(LightningModule):
    def train_batches(self):
        return [1, 2, 3]


def test_fitting_gets_the_modules_batches_and_the_rest_what_is_held_out(bound):
    data = bound(Given("a", numbers(0, 40)), held_out_fraction=0.5, eval_batch_size=7)
    held_out = questions(data.held_out_groups())
    batches = [questions(batch) for batch in data.val_dataloader()]
    assert [q for batch in batches for q in batch] == held_out
    assert [len(batch) for batch in batches[:-1]] == [7] * (len(batches) - 1)
    assert [questions(batch) for batch in data.test_dataloader()] == batches
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    trainer.strategy.connect(Module())
    data.trainer = trainer
    assert data.train_dataloader() == [1, 2, 3]
    trainer.state.fn = "fit"
    assert data.val_dataloader() == []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"responses": ()}, "group 1 has no responses"),
        ({"responses": ("y",)}, "not a JudgedGroup of JudgedResponse"),
        ({"responses": (JudgedResponse("y", float("nan")),)}, "response 0: correct is nan, not a probability"),
        ({"responses": (JudgedResponse("y", 3),)}, "response 0: correct is 3, not a probability"),
        ({"responses": (JudgedResponse("y", "1"),)}, "response 0: correct is '1', not a probability"),
        ({"responses": (JudgedResponse("y", None, (Step(1, -0.5),)),)}, "a step's label is -0.5"),
        ({"responses": (JudgedResponse("y", None, (Step(2, 0.5),)),)}, "ends at 2, not within its 1 characters"),
        ({"pairs": (Pair(0, 2),)}, "a pair of responses 0 and 2 of 2"),
        ({"pairs": (Pair(0, 1, float("inf")),)}, "a pair's margin is inf, not a finite number"),
        ({"pairs": (Pair(0, 1, None),)}, "a pair's margin is None"),
    ],
)
def test_what_a_plug_in_source_gives_is_checked_and_the_source_named(bound, wrong, said):
    fields = {"responses": asked("q").responses, "pairs": (Pair(0, 1),)} | wrong
    if "pairs" not in wrong:
        fields["pairs"] = ()
    odd = JudgedGroup(Problem("q1", "q1"), "math", **fields)
    with pytest.raises(PartError, match=re.escape("reward data mine: group 1")) as caught:
        bound(Given("mine", [asked("q0"), odd, asked("q2")]))
    assert said in str(caught.value)
