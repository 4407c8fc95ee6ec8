"""PRM800K, Math-Shepherd and stepwise supervision, with rows of our own and the groups worked out by hand."""

import json

import pytest

from rlhf_lightning.data.judged import render_groups
from rlhf_lightning.data.render import Renderer
from rlhf_lightning.data.reward_sources.labelled_steps import PRM800K, MathShepherd, Steps
from rlhf_lightning.errors import ConfigError, DataError
from rlhf_lightning.reward_types import JudgedResponse, Step


@pytest.fixture
def opened(tmp_path):
    def make(cls, *rows, delimiter="\n", **arguments):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        source = cls(str(path), **arguments)
        source.open(delimiter=delimiter)
        return source

    return make


def rated(*pairs):
    return [{"text": text, "rating": rating, "flagged": None} for text, rating in pairs]


def step(*pairs, chosen=0, human=None):
    written = None if human is None else {"text": human, "rating": None, "source": "human"}
    return {"completions": rated(*pairs), "chosen_completion": chosen, "human_completion": written}


def row(*steps, reason="solution", **question):
    asked = {"problem": "1 + 2 + 3?", "ground_truth_answer": "6", "pre_generated_steps": None} | question
    return {"labeler": "x", "question": asked, "label": {"steps": list(steps), "finish_reason": reason}}


def test_prm800k_a_solution_is_right_and_its_alternatives_share_its_beginning(opened):
    source = opened(PRM800K, row(step(("1+2=3", 1)), step(("3+3=5", -1), ("3+3=6", 1), chosen=1), step(("So 6", 1))))
    group = source.group(0)
    assert group.responses == (
        JudgedResponse("1+2=3\n3+3=6\nSo 6", 1.0, (Step(5, 1.0), Step(11, 1.0), Step(16, 1.0)), finished=True),
        JudgedResponse("1+2=3\n3+3=5", None, (Step(5, None), Step(11, 0.0)), finished=False),
    )
    assert (group.problem.question, group.problem.answer, group.task) == ("1 + 2 + 3?", "6", "prm800k")
    assert source.counts() == {"responses": 2, "pairs": 0, "labelled steps": 4}


def test_prm800k_an_error_that_was_found_makes_the_response_wrong(opened):
    last = step(("bad", -1), ("well", 0), ("worse", -1), chosen=None)
    assert opened(PRM800K, row(step(("go", 1)), last, reason="found_error")).group(0).responses == (
        JudgedResponse("go\nbad", 0.0, (Step(2, 1.0), Step(6, 0.0)), finished=False),
        JudgedResponse("go\nwell", None, (Step(2, None), Step(7, 1.0)), finished=False),
        JudgedResponse("go\nworse", 0.0, (Step(2, None), Step(8, 0.0)), finished=False),
    )
    chosen = step(("bad", -1), chosen=0)
    assert opened(PRM800K, row(step(("go", 1)), chosen, reason="found_error")).group(0).responses == (
        JudgedResponse("go\nbad", 0.0, (Step(2, 1.0), Step(6, 0.0)), finished=False),
    )


@pytest.mark.parametrize(("neutral", "label"), [(1.0, 1.0), (0.5, 0.5), (0.0, 0.0), (None, None)])
def test_prm800k_neutral_ratings_are_what_one_says(opened, neutral, label):
    source = opened(PRM800K, row(step(("so", 0)), step(("5", 0)), reason="found_error"), neutral=neutral)
    (response,) = source.group(0).responses
    assert response.steps == (Step(2, label), Step(4, label))
    assert response.correct is None  # no step is rated -1


def test_prm800k_steps_that_people_wrote_and_ratings_that_are_missing(opened):
    steps = step(("no", -1), chosen=None, human="yes"), step(("eh", None)), step(chosen=None)
    assert opened(PRM800K, row(*steps, reason="give_up")).group(0).responses == (
        JudgedResponse("yes\neh", None, (Step(3, 1.0), Step(6, None)), finished=False),
        JudgedResponse("no", None, (Step(2, 0.0),), finished=False),
    )


def test_prm800k_offsets_hold_where_a_step_holds_the_delimiter(opened):
    source = opened(PRM800K, row(step(("a\n\nb ", 1)), step(("c", 1))), delimiter="\n\n")
    (response,) = source.group(0).responses
    assert response.text == "a\n\nb \n\nc"
    assert [response.text[: s.end] for s in response.steps] == ["a\n\nb", "a\n\nb \n\nc"]


def test_prm800k_broken_problems_and_rows_without_steps_are_left_out(opened):
    nothing = {"completions": None, "chosen_completion": None, "human_completion": None}
    rows = row(step(("a", 1)), reason="bad_problem"), row(nothing), row(step(("b", 1)), problem="other")
    source = opened(PRM800K, *rows)
    assert [source.group(i).problem.question for i in range(len(source))] == ["other"]
    assert source.skipped == 0
    with pytest.raises(DataError, match="no group in 1 rows: none holds anything to learn from"):
        opened(PRM800K, rows[0])


def test_prm800k_the_first_responses_of_a_row(opened):
    one = row(step(("a", 1), ("b", 1), ("c", 1)))
    source = opened(PRM800K, one, one, max_solutions=2)
    assert [[r.text for r in source.group(i).responses] for i in range(2)] == [["a", "b"], ["a", "b"]]
    assert source.counts()["responses"] == 4


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (row(step(("a", 2))), "field 'label.steps[0].completions[0].rating' must be -1, 0, 1 or null, got 2"),
        (row(step(("a", True))), "field 'label.steps[0].completions[0].rating' must be -1, 0, 1 or null, got True"),
        (row(step(("a", 1), chosen=1)), "field 'label.steps[0].chosen_completion' must be the index of one of 1 compl"),
        ({"question": {"problem": "q"}}, "no field 'label'. Present: question"),
        (row(step(("a", 1)), problem=None), "field 'question.problem' must be text, got None"),
        ({"question": "q", "label": row()["label"]}, "field 'question' must be an object, got 'q'"),
        (row({"completions": "a"}), "field 'label.steps[0].completions' must be a list, got 'a'"),
        (row({"completions": [{"text": "a"}]}), "no field 'label.steps[0].completions[0].rating'. Present: text"),
    ],
)
def test_prm800k_bad_rows(opened, bad, message):
    if not isinstance(bad["question"], dict):
        bad = bad | {"label": row(step(("a", 1)))["label"]}
    with pytest.raises(DataError) as refused:
        opened(PRM800K, row(step(("a", 1))), bad)
    assert f"rows.jsonl, line 2: {message}" in str(refused.value)
    assert opened(PRM800K, row(step(("a", 1))), bad, on_bad_row="skip").skipped == 1


def test_prm800k_neutral_out_of_range_is_refused():
    with pytest.raises(ConfigError, match=r"neutral must be in \[0, 1\] or null, got -1"):
        PRM800K("no-such.jsonl", neutral=-1.0)


def shepherd(text):
    """Text with a sign after each step, as ``label`` has it."""
    marked = "".join("ки" if c == "§" or c == "¤" else c for c in text)
    return {"input": marked, "label": text.replace("§", "+").replace("¤", "-"), "task": "GSM8K"}


def test_math_shepherd_markers_are_taken_out(opened):
    one = shepherd("Ann has 2+3 eggs. How many? Step 1: 2+3 = 5 §\nStep 2: The answer is: 6 ¤\n")
    two = shepherd("Ann has 2+3 eggs. How many?  Step 1: It is 5 §")
    other = shepherd("And Bob? step 1: none ¤")
    source = opened(MathShepherd, one, two, other)
    assert source.group(0).problem.question == "Ann has 2+3 eggs. How many?"
    assert source.group(0).responses == (
        JudgedResponse("Step 1: 2+3 = 5\nStep 2: The answer is: 6", 0.0, (Step(15, 1.0), Step(40, 0.0))),
        JudgedResponse("Step 1: It is 5", 1.0, (Step(15, 1.0),)),
    )
    assert source.group(1).responses == (JudgedResponse("step 1: none", 0.0, (Step(12, 0.0),)),)
    assert len(source) == 2
    assert source.counts() == {"responses": 3, "pairs": 0, "labelled steps": 4}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            shepherd("How many§ Step 1: two §"),
            "field 'input' must be a question, then 'Step 1:', before",
        ),
        (shepherd("How many? Step 1: two § and more"), "field 'input' must be text that ends with 'ки'"),
        ({"input": "How many? Step 1: two", "label": ""}, "field 'input' must be text that ends with 'ки'"),
        (
            shepherd("How many? Step 1: two §") | {"label": "How many? Step 1: two ?"},
            "field 'label' must be the text of 'input' with + or - for each 'ки' (it is not for step 1), got",
        ),
        (
            shepherd("How? Step 1: a §\nStep 2: b ¤") | {"label": "How? Step 1: a +\nStep 2:  b-"},
            "field 'label' must be the text of 'input' with + or - for each 'ки' (it is not for step 2), got",
        ),
    ],
)
def test_math_shepherd_bad_rows(opened, bad, message):
    with pytest.raises(DataError) as refused:
        opened(MathShepherd, shepherd("q? Step 1: a §"), bad)
    assert f"rows.jsonl, line 2: {message}" in str(refused.value)


def test_stepwise_supervision(opened):
    source = opened(
        Steps,
        {"prompt": "q", "completions": ["one", "two"], "labels": [True, False]},
        {"prompt": "q", "completions": ["three"], "labels": [0.25], "correct": 1},
        {"prompt": "r", "completions": ["x"], "labels": [None]},
        delimiter="; ",
        label="math",
    )
    assert source.group(0).responses == (
        JudgedResponse("one; two", None, (Step(3, 1.0), Step(8, 0.0))),
        JudgedResponse("three", 1.0, (Step(5, 0.25),)),
    )
    assert source.group(1).responses == (JudgedResponse("x", None, (Step(1, None),)),)
    assert source.group(1).task == "math"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"labels": [True]},
            "field 'labels' must be a list of 2 labels, one for each of 'completions', not 1",
        ),
        ({"labels": [True, 1.01]}, "field 'labels[1]' must be a number from 0 to 1, or null, got 1.01"),
        ({"completions": [], "labels": []}, "field 'completions' must be a list of at least one step, got list"),
        ({"completions": "ab"}, "field 'completions' must be a list, got 'ab'"),
        ({"correct": "yes"}, "field 'correct' must be a number from 0 to 1, or null, got 'yes'"),
    ],
)
def test_stepwise_bad_rows(opened, change, message):
    good = {"prompt": "q", "completions": ["a", "b"], "labels": [True, False]}
    with pytest.raises(DataError) as refused:
        opened(Steps, good, good | change)
    assert f"rows.jsonl, line 2: {message}" in str(refused.value)


def test_an_empty_step_is_none_and_shares_no_token_with_its_neighbour(opened, tokenizer_of):
    texts, labels = ["", "one", "", "two", " \n"], [False, True, False, True, False]
    source = opened(Steps, {"prompt": "q", "completions": texts, "labels": labels, "correct": True})
    group = source.group(0)
    assert group.responses == (JudgedResponse("one\ntwo", 1.0, (Step(3, 1.0), Step(7, 1.0))),)
    assert source.counts() == {"responses": 1, "pairs": 0, "labelled steps": 2, "empty steps left out": 3}
    (rendered,) = render_groups(Renderer(tokenizer_of()), [group])
    assert rendered.step_ends == ((2, 7),)  # "one", and the end-of-sequence token: a whole response's last verdict
    with pytest.raises(DataError, match="field 'completions' must be a list of at least one step"):
        opened(Steps, {"prompt": "q", "completions": ["", " "], "labels": [True, True]})


def test_empty_steps_of_other_formats(opened):
    source = opened(MathShepherd, shepherd("q? Step 1: a §\n ¤\nStep 2: b §"))
    assert source.group(0).responses == (JudgedResponse("Step 1: a\nStep 2: b", 1.0, (Step(9, 1.0), Step(19, 1.0))),)
    assert source.counts()["empty steps left out"] == 1
    source = opened(
        PRM800K,
        row(step(("a", 1), ("", -1)), step((" ", 1)), step(("b", 1))),
        row(step(("c", 1)), step(("", -1)), reason="found_error"),
    )
    assert source.group(0).responses == (JudgedResponse("a\nb", 1.0, (Step(1, 1.0), Step(3, 1.0))),)
    assert source.group(1).responses == (JudgedResponse("c", None, (Step(1, 1.0),), finished=False),)
    assert source.counts()["empty steps left out"] == 3


def test_prm800k_counts_the_rows_that_teach_nothing(opened):
    nothing = {"completions": None, "chosen_completion": None, "human_completion": None}
    rows = row(step(("a", 1)), reason="bad_problem"), row(nothing), row(step(("b", 1)))
    counts = opened(PRM800K, *rows).counts()
    assert counts["rows with a broken problem left out"] == 1
    assert counts["rows without a step left out"] == 1


def test_math_shepherd_a_question_that_tells_of_step_1_is_whole(opened):
    asked = "To bake: Step 1: mix 2 eggs. Step 2: heat. How many eggs?"
    one = shepherd(f"{asked} Step 1: It is 2 §\nStep 2: The answer is: 2 §")
    other = shepherd("In step 1: of what? Step 1: x §")
    source = opened(MathShepherd, one, other)
    assert [source.group(i).problem.question for i in (0, 1)] == [asked, "In step 1: of what?"]
    assert source.group(0).responses[0].text == "Step 1: It is 2\nStep 2: The answer is: 2"


def test_math_shepherd_labels_in_a_list(opened):
    text = shepherd("q? Step 1: a §\nStep 2: b ¤")["input"]
    rows = [
        {"input": text, "value": ["+", "-"]},
        {"input": text, "value": [True, 0.25]},
        {"input": text, "label": [1, None], "value": None},
    ]
    source = opened(MathShepherd, *rows)
    found = [[s.label for s in response.steps] for response in source.group(0).responses]
    assert found == [[1.0, 0.0], [1.0, 0.25], [1.0, None]]
    assert [response.correct for response in source.group(0).responses] == [0.0, 0.25, None]
    apart = {"ask": "q?", "process": "a<s>b<s>", "label": ["+", "-"]}
    source = opened(MathShepherd, apart, question_field="ask", input_field="process", marker="<s>")
    assert source.group(0).problem.question == "q?"
    assert source.group(0).responses == (JudgedResponse("a\nb", 0.0, (Step(1, 1.0), Step(3, 0.0))),)
    for bad, message in (
        ({"value": ["+"]}, "field 'value' must be a list of 2 labels, one for each 'ки', got 1"),
        ({"value": ["+", "x"]}, "field 'value[1]' must be a number from 0 to 1, or null, got 'x'"),
        ({}, "no field 'label'. Present: input"),
    ):
        with pytest.raises(DataError) as refused:
            opened(MathShepherd, {"input": text} | bad)
        assert message in str(refused.value)


def test_stepwise_prompts_in_turns(opened):
    chat = [{"role": "system", "content": "S"}, {"role": "user", "content": "q"}]
    source = opened(Steps, {"prompt": chat, "completions": ["a"], "labels": [True]})
    assert (source.group(0).problem.question, list(source.group(0).problem.turns)) == ("q", chat)


def test_published_steps_are_read(published):
    source = MathShepherd(str(published / "samples_math-shepherd.jsonl"))
    source.open()
    first = source.group(0)
    assert first.problem.question.endswith("than clarinet lessons in a year?")
    assert first.responses[0].text.startswith("Step 1: Janet spends 3 hours + 5 hours")
    assert (source.counts()["responses"], source.skipped) == (7, 0)
    source = PRM800K(str(published / "samples_prm800k.jsonl"))
    source.open()
    assert source.group(0).problem.answer == "29"
    assert source.skipped == 0
