"""The maths verifier: a table of answers made by hand, published answers in every form, and what it cannot read."""

import json
from pathlib import Path

import pytest
from math_pairs import PAIRS

from rlhf_lightning.data.tasks import JsonlTask
from rlhf_lightning.data.tasks.math_clean import clean
from rlhf_lightning.data.tasks.math_text import find_answer, last_boxed
from rlhf_lightning.data.tasks.verifiers import last_number, math_answer, numeric
from rlhf_lightning.errors import DataError
from rlhf_lightning.scorers import VerifierScorer

pytest.importorskip("math_verify")

CASES = [
    (reference, response, right)
    for entries in PAIRS.values()
    for reference, *responses in entries
    for right, given in zip((1.0, 0.0), responses, strict=True)
    for response in given
]
FORMS = {
    "boxed": lambda a: f"We compute.\n\nThe final answer is $\\boxed{{{a}}}$.",
    "dollars": lambda a: f"We compute.\n\nAnswer: ${a}$",
    "bare": lambda a: f"We compute, with 3 steps.\n\nAnswer: {a}",
    "sentence": lambda a: f"We compute it in 2 steps.\n\nTherefore, the final answer is {a}.",
    "sentence with dollars": lambda a: f"We compute $x = 12$ first.\n\nSo the value is ${a}$.",
    "bold": lambda a: f"We compute it.\n\n**{a}**",
    "bold after its mark": lambda a: f"We compute it.\n\n**Answer:** {a}",
    "bold with its mark": lambda a: f"We compute it.\n\n**Answer: {a}**",
    "bold in a sentence": lambda a: f"We compute it.\n\nThe final answer is **{a}**.",
    "last line": lambda a: f"We compute it in 2 steps: $x=3$.\n{a}",
    "display": lambda a: f"We compute it.\nAnswer:\n\\[\n{a}\n\\]",
    "hashes": lambda a: f"We compute it.\n#### {a}",
}


def published(name):
    """A published file, where one lies in a folder ``shared/benchmarks`` beside or above this checkout."""
    places = (folder / "shared" / "benchmarks" / name for folder in Path(__file__).resolve().parents)
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        pytest.skip(f"shared/benchmarks/{name} is not on this machine")
    return [json.loads(line) for line in found.read_text(encoding="utf-8").splitlines()]


def test_the_table_is_large_and_says_each_thing_once():
    assert len(CASES) >= 400
    assert len({(reference, response) for reference, response, _ in CASES}) == len(CASES)


@pytest.mark.parametrize("kind", PAIRS)
def test_every_pair_of_the_table_is_judged_right(kind):
    wrong = [
        (reference, response, right)
        for reference, *responses in PAIRS[kind]
        for right, given in zip((1.0, 0.0), responses, strict=True)
        for response in given
        if math_answer(reference, response) != right
    ]
    assert wrong == []


@pytest.mark.parametrize("form", FORMS)
def test_published_answers_are_right_in_every_form(form):
    answers = [row["answer"] for row in published("math500.jsonl")]
    wrong = [answer for answer in answers if math_answer(answer, FORMS[form](answer)) != 1.0]
    assert (len(answers), wrong) == (500, [])


@pytest.mark.parametrize("form", ["boxed", "bare"])
def test_another_row_s_published_answer_is_wrong(form):
    answers = [row["answer"] for row in published("math500.jsonl")]
    found = [
        (own, other)
        for own, other in zip(answers, answers[1:] + answers[:1], strict=True)
        if own != other and math_answer(own, FORMS[form](other))
    ]
    assert found == [("5", "x=5")]  # one value, written in two ways


@pytest.mark.parametrize("judge", [math_answer, numeric])
def test_published_solutions_of_grade_school_problems_are_right(judge):
    rows = [row["answer"] for row in published("gsm8k_test.jsonl")]
    assert sum(judge(row.rpartition("####")[2].strip(), row) for row in rows) == len(rows) == 1319


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"\boxed{3} is wrong: \boxed{7}", "7"),
        (r"\boxed{7", None),
        (r"\boxed{3} and then \boxed{\frac{1}{2}", None),
        (r"\boxed 24 apples", "24"),
        (r"\fbox {x+1}", "x+1"),
        (r"\boxed{1} and \boxed{2}", "1, 2"),
        (r"\boxed{\left\{1, 2\right\}}", r"\left\{1, 2\right\}"),
        ("I don't know.\n\n", "I don't know."),
        ("", None),
        (" \n", None),
    ],
)
def test_where_an_answer_is_found(response, answer):
    assert find_answer(response) == answer


def test_the_last_box_alone():
    assert last_boxed(r"\boxed{1}, \boxed{\frac{1}{2}}") == r"\frac{1}{2}"
    assert last_boxed(r"\boxed{1} \boxed{2") is None
    assert last_boxed("none") is None


def test_cleaning_changes_nothing_the_second_time():
    for reference, response, _ in CASES:
        for text in (reference, find_answer(response) or ""):
            assert clean(clean(text)) == clean(text)


@pytest.mark.parametrize("answer", ["$$", r"\frac{1}{2", "}", r"\frac{}{2}", r"\$"])
def test_references_that_cannot_be_read_are_told_with_their_row(tmp_path, answer):
    rows = [{"question": "Q1", "answer": "1"}, {"question": "Q2", "answer": answer}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"rows\.jsonl, line 2: field 'answer': the reference answer .* cannot be read"):
        JsonlTask(str(path)).train_problems()
    with pytest.raises(ValueError, match="cannot be read"):
        math_answer(answer, "1")


def test_a_task_that_mistrusts_no_pattern_reads_the_whole_response(tmp_path):
    rows = [{"question": f"Q{n}", "answer": r"3\sqrt{13}"} for n in range(2)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = JsonlTask(str(tmp_path / "rows.jsonl"))
    problem = task.train_problems()[0]
    assert task.verify(problem, r"\boxed{3\sqrt{13}} I said. Answer: see above") == 1.0
    assert task.verify(problem, r"Answer: 3\sqrt{13}") == 1.0
    assert task.verify(problem, "Answer: 3") == 0.0
    assert task.answer_of(problem, r"Answer: $3\sqrt{13}$.") == r"3\sqrt{13}"


@pytest.mark.parametrize(
    ("text", "number"),
    [("10{,}000", 10000), (r"10\,000", 10000), (r"10,\!000", 10000), ("10\u202f000", 10000), ("−5", -5), ("x=−5", -5),
     ("3–5", 5), ("1e3", 1000), (r"\frac{3}{4}", 0.75), (r"-\frac{3}{4}", -0.75), ("2 1/2", 2.5), ("-2 1/2", -2.5),
     ("1.5E-2", 0.015), ("5 - 3", 3)],
)  # fmt: skip
def test_numbers_as_they_are_written(text, number):
    assert last_number(text) == pytest.approx(number, abs=1e-12)


def test_a_minus_sign_of_any_kind_counts():
    assert numeric("5", "−5") == 0.0
    assert numeric("-5", "−5") == 1.0


def test_a_tower_of_powers_costs_one_response(tmp_path):
    (tmp_path / "rows.jsonl").write_text(
        json.dumps({"question": "Q", "answer": "x+1"}) + "\n" + json.dumps({"question": "P", "answer": "x+1"}) + "\n"
    )
    task = JsonlTask(str(tmp_path / "rows.jsonl"))
    problem = task.train_problems()[0]
    scorer = VerifierScorer(time_limit=10.0, memory_limit=0.5)
    scorer.bind({"jsonl": task})
    towers = [r"9^{9^{9^{9}}}", "9^9^9^9", r"x+9^{99999999}", "99999999!", r"(9^{9^9})^{9^9}", r"\frac{1}{2^{2^{99}}}"]
    outcomes = scorer.outcomes([("jsonl", problem, f"Answer: {answer}") for answer in [*towers, "1+x"]])
    scorer.close()
    assert outcomes[-1] == (1.0, None)
    assert all(score in (0.0, None) for score, _ in outcomes[:-1])
