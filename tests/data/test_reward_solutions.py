"""Groups of demonstrations and of sampled solutions, against groups written by hand."""

import json
import logging

import pytest

from rlhf_lightning.data.reward_sources.responses import Demonstrations, Solutions
from rlhf_lightning.errors import ConfigError, DataError
from rlhf_lightning.protocols import Task
from rlhf_lightning.reward_types import JudgedGroup, JudgedResponse, Step
from rlhf_lightning.types import Demonstration, Problem


def line(id, sample=0, response="a\nb", correct=1.0, **more):
    known = {"task": "sums", "id": id, "question": f"{id}?", "answer": "7", "sample": sample}
    return known | {"response": response, "correct": correct, "finished": True, "failed": False} | more


@pytest.fixture
def opened(tmp_path):
    def make(rows, **arguments):
        path = tmp_path / "solutions.jsonl"
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        source = Solutions(str(path), **arguments)
        source.open()
        return source

    return make


def groups(source):
    return [source.group(i) for i in range(len(source))]


class Demonstrated(Task):
    name = "shown"

    def __init__(self, demonstrations):
        self._demonstrations = demonstrations

    def train_problems(self):
        return []

    def held_out_problems(self):
        return []

    def verify(self, problem, response):
        return 0.0

    def demonstrations(self):
        return iter(self._demonstrations)


def test_demonstrations_of_one_problem_are_a_group():
    one, two = Problem("1", "q"), Problem("2", "r")
    source = Demonstrations(
        Demonstrated(
            [
                Demonstration(one, "22+12\n=34", (True, False), False),
                Demonstration(two, "x"),
                Demonstration(one, "19\n=31", (True, True), True),
                Demonstration(one, "never drawn"),
            ]
        ),
        size=3,
    )
    source.open()
    assert groups(source) == [
        JudgedGroup(
            one,
            "shown",
            (
                JudgedResponse("22+12\n=34", 0.0, (Step(5, 1.0), Step(9, 0.0))),
                JudgedResponse("19\n=31", 1.0, (Step(2, 1.0), Step(6, 1.0))),
            ),
        ),
        JudgedGroup(two, "shown", (JudgedResponse("x", None, (Step(1),)),)),
    ]
    assert source.counts() == {"responses": 3, "pairs": 0, "labelled steps": 4}
    assert source.question_key(0) != source.question_key(1)


def test_demonstrations_are_capped_by_problem_and_renamed():
    one = Problem("1", "q")
    source = Demonstrations(Demonstrated([Demonstration(one, t) for t in "abc"]), max_solutions=2, label="chat")
    source.open()
    assert [r.text for r in source.group(0).responses] == ["a", "b"]
    assert source.group(0).task == source.label == "chat"


def test_labels_that_do_not_match_the_steps_are_refused():
    source = Demonstrations(Demonstrated([Demonstration(Problem("p7", "q"), "a\nb", (True,))]))
    with pytest.raises(DataError, match=r"task shown, problem p7: a demonstration has 1 labelled steps, .* into 2"):
        source.open()
    source.open(delimiter=";")
    assert source.group(0).responses[0].steps == (Step(3, 1.0),)


def test_a_task_without_demonstrations_names_the_way_out():
    class Silent(Demonstrated):
        demonstrations = Task.demonstrations

    with pytest.raises(ConfigError, match=r"'shown' has no demonstrations: sample solutions with `rlhf sample`"):
        Demonstrations(Silent([])).open()


def test_no_demonstrations_and_values_out_of_range_are_refused():
    with pytest.raises(DataError, match="task shown: there are no demonstrations"):
        Demonstrations(Demonstrated([])).open()
    with pytest.raises(ConfigError, match="size must be at least 1, got 0"):
        Demonstrations(Demonstrated([]), size=0)


def test_consecutive_lines_of_a_problem_are_a_group(opened, tmp_path):
    source = opened(
        [line("p"), line("p", 1, "c", 0.25, finished=False), line("q", correct=None), line("p", 2, "d", failed=True)]
    )
    place = str(tmp_path / "solutions.jsonl") + ", line "
    steps = (Step(1), Step(3))
    assert groups(source) == [
        JudgedGroup(
            Problem("p", "p?", "7", {"place": place + "1"}),
            "sums",
            (JudgedResponse("a\nb", 1.0, steps), JudgedResponse("c", 0.25, (Step(1),), finished=False)),
        ),
        JudgedGroup(Problem("q", "q?", "7", {"place": place + "3"}), "sums", (JudgedResponse("a\nb", None, steps),)),
        JudgedGroup(Problem("p", "p?", "7", {"place": place + "4"}), "sums", (JudgedResponse("d", None, (Step(1),)),)),
    ]
    assert source.question_key(0) == source.question_key(2) != source.question_key(1)
    assert source.counts() == {"responses": 4, "pairs": 0, "labelled steps": 0}


def test_labelled_steps_and_conversations(opened):
    steps = [{"end": 1, "text": "a", "label": 0.5, "rollouts": 4}, {"end": 3, "text": "b", "label": None}]
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "?"}]
    source = opened([line("p", steps=steps, messages=turns)], label="math")
    group = source.group(0)
    assert group.responses[0].steps == (Step(1, 0.5), Step(3, None))
    assert group.problem.metadata["messages"] == turns
    assert group.task == "math"
    assert source.counts()["labelled steps"] == 1


def test_fewer_solutions_and_prompts_are_subsets_of_more(opened):
    rows = [line(f"p{p}", s, f"{p}-{s}") for p in range(16) for s in range(6)]

    def texts(**arguments):
        return {r.text for g in groups(opened(rows, **arguments)) for r in g.responses}

    everything = texts()
    assert len(everything) == 96
    for larger, smaller, size in (
        (everything, texts(max_solutions=3), 48),
        (texts(max_solutions=3), texts(max_solutions=3, prompt_fraction=0.5), 24),
        (texts(prompt_fraction=0.5), texts(prompt_fraction=0.25), 24),
        (texts(prompt_fraction=0.25), texts(prompt_fraction=0.125), 12),
    ):
        assert smaller < larger
        assert len(smaller) == size
    assert all(text.endswith(("-0", "-1", "-2")) for text in texts(max_solutions=3))
    assert texts(prompt_fraction=0.25, seed=1) != texts(prompt_fraction=0.25)
    assert opened(rows, max_solutions=3, prompt_fraction=0.25).counts()["responses"] == 12


BAD = {
    "label above 1": (line("q", correct=1.5), "field 'correct' must be a number from 0 to 1, or null, got 1.5"),
    "label below 0": (line("q", correct=-0.1), "field 'correct' must be a number from 0 to 1, or null, got -0.1"),
    "label that is text": (
        line("q", correct="yes"),
        "field 'correct' must be a number from 0 to 1, or null, got 'yes'",
    ),
    "no response": (
        {k: v for k, v in line("q", reponse="x").items() if k != "response"},
        "no field 'response'. Did you mean 'reponse'? Present: task, id, question",
    ),
    "step past the end": (
        line("q", steps=[{"end": 4, "label": 1}]),
        r"field 'steps[0].end' must be above 0 and at most 3: the characters up to the step's end, got 4",
    ),
    "steps out of order": (
        line("q", steps=[{"end": 3, "label": 1}, {"end": 2, "label": 1}]),
        "field 'steps[1].end' must be above 3 and",
    ),
    "step label": (line("q", steps=[{"end": 3, "label": 2}]), "field 'steps[0].label' must be a number from 0 to 1"),
    "step without label": (line("q", steps=[{"end": 3}]), "no field 'steps[0].label'. Present: end"),
    "steps that are no list": (line("q", steps={"end": 3}), "field 'steps' must be a list, got dict"),
    "flag": (line("q", finished="no"), "field 'finished' must be true or false, got 'no'"),
    "another question of the same id": (
        line("p", question="other?"),
        "field 'question' must be that of the line before",
    ),
    "nothing to score": (line("q", response="", finished=False), "a response that was cut off is empty"),
    "broken JSON": ('{"task": ', "not valid JSON"),
    "no object": ("[1]", "must be a JSON object, got list"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_is_refused_with_its_place_or_skipped_and_counted(opened, case, caplog):
    row, message = BAD[case]
    rows = [line("p"), row, line("p", 1, "c")]
    with pytest.raises(DataError) as refused:
        opened(rows)
    assert f"solutions.jsonl, line 2: {message}" in str(refused.value)
    with caplog.at_level(logging.WARNING):
        source = opened(rows, on_bad_row="skip")
    assert [[r.text for r in g.responses] for g in groups(source)] == [["a\nb", "c"]]
    assert source.skipped == 1
    assert caplog.text.count("1 of 3 rows are malformed and left out; the first:") == 1
    assert message in caplog.text


def test_nothing_but_bad_rows_is_refused_even_when_skipping(opened):
    with pytest.raises(DataError, match=r"no group in 2 rows: 2 are malformed; the first: .*line 1"):
        opened([{}, {}], on_bad_row="skip")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"on_bad_row": "skp"}, r"on_bad_row: there is no 'skp'. Did you mean 'skip'\?"),
        ({"max_solutions": 0}, "max_solutions must be at least 1, got 0"),
        ({"prompt_fraction": 0.0}, r"prompt_fraction must be in \(0, 1\], got 0.0"),
    ],
)
def test_arguments_out_of_range_are_refused_before_the_file_is_read(arguments, message):
    with pytest.raises(ConfigError, match=message):
        Solutions("no-such.jsonl", **arguments)
