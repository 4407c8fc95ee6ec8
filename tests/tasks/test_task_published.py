"""Rows in the forms that data sets are published in: made by hand here, and the real files where they are at hand."""

import gc
import gzip
import json
import logging
import pickle
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlhf_lightning.data.tasks import FileTask, JsonlTask
from rlhf_lightning.errors import ConfigError, DataError

ABOVE = [folder / "shared" / "benchmarks" for folder in Path(__file__).parents[3:]]
REAL = next((folder for folder in ABOVE if folder.is_dir()), None)


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def turn(role, content):
    return {"role": role, "content": content}


def asked(*turns):
    return {"q": list(turns), "a": 1}


def problems(task):
    """All problems in the order of their file."""
    both = [*task.train_problems(), *task.held_out_problems()]
    return sorted(both, key=lambda problem: int(problem.id.rsplit(":")[-1]))


FORMS = [
    ("gsm8k", {"question": "Ask", "answer": "1+1=<<1+1=2>>2\n#### 2"}, "Ask", "2"),
    ("math500", {"problem": "Ask", "solution": "So \\boxed{3}.", "answer": "3", "level": 2}, "Ask", "3"),
    ("math", {"problem": "Ask", "solution": "So $\\boxed{\\frac{1}{2}}$.", "level": "Level 1"}, "Ask", r"\frac{1}{2}"),
    ("verl", {"prompt": [turn("user", "Ask")], "reward_model": {"ground_truth": "9", "style": "rule"}}, "Ask", "9"),
    ("orz", {"prompt": [{"from": "user", "value": "Ask"}], "final_answer": "73"}, "Ask", "73"),
    ("rlvr", {"messages": [turn("user", "Ask")], "ground_truth": "3", "dataset": "t"}, "Ask", "3"),
    ("svamp", {"Body": "Ann has 3.", "Question": "Ask", "Answer": 3.0}, "Ann has 3. Ask", "3.0"),
    ("aqua", {"question": "Ask", "options": ["A)1", "B)2"], "correct": "B", "rationale": "r"}, "Ask\nA)1\nB)2", "B"),
    ("mmlu", {"question": "Ask", "choices": ["x", "y", "z"], "answer": 2}, "Ask\nA. x\nB. y\nC. z", "C"),
    ("humaneval", {"prompt": "Ask", "test": "assert f()", "canonical_solution": " return 1"}, "Ask", "assert f()"),
    ("alignbench", {"question": "问 Ask", "reference": "答。"}, "问 Ask", "答。"),
    ("mt_bench", {"turns": ["Ask", "Then?"], "category": "writing"}, "Ask", ""),
    ("prompts", {"prompt": "Ask"}, "Ask", ""),
]


@pytest.mark.parametrize(("preset", "row", "question", "answer"), FORMS, ids=[form[0] for form in FORMS])
def test_rows_in_their_published_form(tmp_path, preset, row, question, answer):
    other = json.loads(json.dumps(row).replace("Ask", "Beg"))
    path = lines(tmp_path / "a.jsonl", [row, other])
    first, second = problems(FileTask(path, preset=preset, verifier="exact", held_out_fraction=0.5))
    assert (first.question, first.answer, first.id) == (question, answer, "a.jsonl:1")
    assert second.question == question.replace("Ask", "Beg")
    assert dict(first.metadata["fields"]) == row


def test_a_table_of_choices_without_names_of_columns(tmp_path):
    (tmp_path / "val.csv").write_text('"Which, of these?",7,8,9,10,B\nAnd now?,a,b,c,NA,D\n')
    task = FileTask(str(tmp_path / "val.csv"), preset="mmlu_csv", verifier="exact", held_out_fraction=0.5)
    first, second = problems(task)
    assert (first.question, first.answer) == ("Which, of these?\nA. 7\nB. 8\nC. 9\nD. 10", "B")
    assert (second.question, second.answer) == ("And now?\nA. a\nB. b\nC. c\nD. NA", "D")
    assert task.verify(first, "It is eight.\nAnswer: B") == 1.0
    assert task.verify(first, "Answer: C") == 0.0


def test_the_same_problems_from_every_kind_of_file(tmp_path):
    rows = [{"extra": {"index": n}, "question": f"{n} + 1?", "answer": n + 1} for n in range(20)]
    lines(tmp_path / "a.jsonl", rows)
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=1))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    flat = [{"extra.index": row["extra"]["index"], **row} for row in rows]
    (tmp_path / "a.csv").write_text("".join(f"{r['extra.index']},{r['question']},{r['answer']}\n" for r in flat))
    found = {}
    for name in ("a.jsonl", "a.json", "a.jsonl.gz", "a.parquet", "a.csv"):
        columns = ["extra.index", "question", "answer"] if name == "a.csv" else None
        task = FileTask(str(tmp_path / name), prompt_format="{extra.index}: {question}", columns=columns)
        found[name] = [(p.question, p.answer, p.id.split(":")[1]) for p in task.held_out_problems()]
    assert len(found["a.jsonl"]) == 2
    assert all(same == found["a.jsonl"] for same in found.values())


def test_turns_keep_the_system_and_earlier_ones(tmp_path):
    chat = [turn("system", "Be brief."), turn("user", "Hi"), turn("assistant", "Yes?"), turn("user", "1+1?")]
    path = lines(tmp_path / "a.jsonl", [asked(*chat), asked(turn("user", "2+2?"))])
    task = FileTask(
        path, question_field="q", answer_field="a", prompt_format="{question} Think.", held_out_fraction=0.5
    )
    problem = problems(task)[0]
    assert problem.question == "1+1? Think."
    assert list(problem.turns) == [*chat[:-1], turn("user", "1+1? Think.")]


def test_turns_in_other_spellings(tmp_path):
    parts = [{"type": "text", "text": "1+"}, {"type": "text", "value": "1?"}]
    rows = [
        asked({"from": "system", "value": "S"}, {"from": "human", "value": "1+1?"}),
        asked(turn("system", [{"type": "text", "value": "S"}]), turn("user", parts)),
        {"q": {"role": ["system", "user"], "content": ["S", "1+1?"]}, "a": 1},
        asked(turn("user", "other")),
    ]
    task = FileTask(lines(tmp_path / "a.jsonl", rows), question_field="q", answer_field="a", held_out_fraction=0.5)
    assert [list(p.turns) for p in problems(task)][:1] == [[turn("system", "S"), turn("user", "1+1?")]]
    assert len({p.whole_question for p in problems(task)}) == 2


def test_turns_that_end_with_a_worked_answer(tmp_path):
    rows = [asked(turn("user", f"{n}?"), turn("assistant", f"It is {n}.")) for n in range(4)]
    path = lines(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError, match=r"line 1: field 'q' must be turns of which the last is to be answered"):
        FileTask(path, question_field="q", answer_field="a").train_problems()
    task = FileTask(path, question_field="q", answer_field="q[-1].content", response_field="q")
    demonstration = next(task.demonstrations())
    assert demonstration.problem.question == demonstration.response.replace("It is ", "").replace(".", "?")
    assert demonstration.problem.answer == demonstration.response


def test_several_answers_of_which_any_is_right(tmp_path):
    rows = [{"question": f"{n}?", "answer": ["four", 5, "6.5"]} for n in range(2)]
    task = FileTask(lines(tmp_path / "a.jsonl", rows), verifier="exact", held_out_fraction=0.5)
    (problem,) = task.train_problems()
    assert problem.answer == "four"
    assert [task.verify(problem, text) for text in ("four", "5", "6.5", "6")] == [1.0, 1.0, 1.0, 0.0]
    assert pickle.loads(pickle.dumps(problem)).metadata["answers"] == ["four", "5", "6.5"]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ([], "field 'answer' holds no answer"),
        (["4", " "], "field 'answer' holds no answer"),
        ([["4"]], r"field 'answer\[0\]' must be text, a number, or a list of those, got list"),
        (float("nan"), "field 'answer' must be text, a number, or a list of those, got nan"),
        (float("inf"), "field 'answer' must be text, a number, or a list of those, got inf"),
        ({"x": 1}, "field 'answer' must be text, a number, or a list of those, got dict"),
        (True, "field 'answer' must be text, a number, or a list of those, got True"),
    ],
)
def test_answers_that_are_none(tmp_path, answer, said):
    path = lines(tmp_path / "a.jsonl", [{"question": "ok?", "answer": 1}, {"question": "x?", "answer": answer}])
    with pytest.raises(DataError, match=f"a.jsonl, line 2: {said}"):
        FileTask(path).train_problems()


def test_missing_fields_name_the_nearest_one_nested_ones_too(tmp_path):
    path = lines(tmp_path / "a.jsonl", [{"prompt": "x", "reward_model": {"ground_truth": "1"}}])
    for field, said in (
        ("ground_truth", r"no field 'ground_truth'. Did you mean 'reward_model.ground_truth'\? Present: prompt, rew"),
        ("reward_model.groundtruth", r"no field 'reward_model.groundtruth'. Did you mean 'ground_truth'\?"),
        ("reward.ground_truth", r"no field 'reward'. Did you mean 'reward_model'\?"),
        ("prompt.x", r"field 'prompt' must be an object, got 'x'"),
        ("prompt[0]", r"field 'prompt' must be a list, got 'x'"),
    ):
        with pytest.raises(DataError, match=f"a.jsonl, line 1: {said}"):
            FileTask(path, preset="prompts", answer_field=field).train_problems()


def test_turns_without_the_users_name_the_roles_there_are(tmp_path):
    path = lines(tmp_path / "a.jsonl", [{"question": [{"role": "usr", "content": "x?"}], "answer": 1}])
    with pytest.raises(DataError, match=r"'question' must be turns with one of the role user, got turns of usr"):
        FileTask(path).train_problems()


def test_a_table_that_is_parted_otherwise_says_how_it_must_be(tmp_path):
    (tmp_path / "a.csv").write_text("question;answer\n1+1;2\n")
    with pytest.raises(DataError, match=r"no field 'question'. The columns of a .csv file must be parted by commas"):
        FileTask(str(tmp_path / "a.csv")).train_problems()


def test_bad_rows_are_left_out_and_counted(tmp_path, caplog):
    rows = [{"question": f"{n}?", "answer": n} for n in range(8)]
    path = tmp_path / "a.jsonl"
    broken = ['{"question": "cut', '{"question": "no answer?", "answer": ""}', '{"question": "\\ud83d?", "answer": 1}']
    path.write_text("\n".join([json.dumps(rows[0]), *broken, *map(json.dumps, rows[1:])]))
    with pytest.raises(DataError, match="line 2: not valid JSON"):
        FileTask(str(path)).train_problems()
    task = FileTask(str(path), on_bad_row="skip")
    with caplog.at_level(logging.WARNING):
        assert len(problems(task)) == 8
    assert task.skipped == 3
    assert "3 of 11 rows are malformed and left out; the first: " in caplog.text
    path.write_text("\n".join(broken))
    with pytest.raises(DataError, match=r"no problem in 3 rows: all are malformed; the first: .*a.jsonl, line 1: not"):
        FileTask(str(path), on_bad_row="skip").train_problems()
    with pytest.raises(ConfigError, match="on_bad_row: there is no 'ignore'"):
        FileTask(str(path), on_bad_row="ignore")


PROMPTS = [
    ("{question}\n{hint}", "How?\nsmall"),
    ("{question} in \\boxed{}", "How? in \\boxed{}"),
    ("{question} in \\boxed{answer}, {{answer}}", "How? in \\boxed{answer}, {answer}"),
    ("\\text{hint} {question}\n{more.list}", "\\text{hint} How?\n1\ntwo"),
    ("{more.list:letters} {more.list[-1]} {question}", "A. 1\nB. two two How?"),
    ("{more.named} {question} {\"x\": 1} {n}", "a. 1\nb. 2 How? {\"x\": 1} 2.5"),
]  # fmt: skip


@pytest.mark.parametrize(("prompt_format", "prompt"), PROMPTS)
def test_prompts_are_filled_from_the_row(tmp_path, prompt_format, prompt):
    more = {"list": [1, "two"], "named": {"a": "1", "b": 2}}
    row = {"question": "How?", "answer": 1, "hint": "small", "more": more, "n": 2.5}
    path = lines(tmp_path / "a.jsonl", [row, row | {"question": "Why?"}])
    task = FileTask(path, prompt_format=prompt_format, held_out_fraction=0.5)
    assert problems(task)[0].question == prompt


@pytest.mark.parametrize(
    ("prompt_format", "error", "said"),
    [
        ("{question} {hnit}", DataError, r"no field 'hnit'. Did you mean 'hint'\? .*\(prompt_format asks for it\)"),
        ("{question} {hint.x}", DataError, r"line 1: field 'hint' must be an object"),
        ("{question} {answer}", ConfigError, r"shows the answer_field \(\{answer\}\); write \{\{answer\}\} for"),
        ("{question} {work}", ConfigError, r"shows the response_field"),
        ("{hint}", ConfigError, r"must contain \{question\}"),
        ("\\boxed{answer}", ConfigError, r"must contain \{question\}"),
    ],
)  # fmt: skip
def test_prompts_that_cannot_be_are_refused(tmp_path, prompt_format, error, said):
    path = lines(tmp_path / "a.jsonl", [{"question": "How?", "answer": 1, "hint": "small", "work": "w"}])
    with pytest.raises(error, match=said):
        FileTask(path, prompt_format=prompt_format, response_field="work").train_problems()


def test_questions_that_differ_in_their_story_are_two(tmp_path):
    rows = [{"Body": f"Ann has {n}.", "Question": "How many?", "Answer": n} for n in range(10)]
    task = FileTask(lines(tmp_path / "a.jsonl", rows), preset="svamp")
    assert len(problems(task)) == 10


def test_without_reference_answers_nothing_is_verified(tmp_path):
    task = FileTask(lines(tmp_path / "a.jsonl", [{"prompt": "a"}, {"prompt": "b"}]), preset="prompts")
    with pytest.raises(ConfigError, match="has no answer_field, so it cannot verify"):
        task.verify(task.train_problems()[0], "x")


def test_splits_of_one_saved_data_set(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [{"question": f"{n}?", "answer": n} for n in range(6)]
    both = {"train": datasets.Dataset.from_list(rows), "test": datasets.Dataset.from_list(rows[4:])}
    datasets.DatasetDict(both).save_to_disk(tmp_path / "sums")
    task = FileTask(str(tmp_path / "sums"), held_out_split="test")
    assert [p.id for p in task.train_problems()] == ["sums:1", "sums:2", "sums:3", "sums:4"]
    assert [p.id for p in task.held_out_problems()] == ["held-out/sums:1", "held-out/sums:2"]
    assert task.dropped == 2
    with pytest.raises(ConfigError, match="held_out_split is 'train', which is trained on"):
        FileTask(str(tmp_path / "sums"), held_out_split="train")


def test_what_a_row_holds_beside_the_problem_is_not_held_in_memory(tmp_path):
    path = tmp_path / "a.jsonl"
    with path.open("w") as file:
        for number in range(1500):
            file.write(json.dumps({"question": f"{number}?", "answer": number, "trace": "x" * 10_000}) + "\n")
    task = JsonlTask(str(path))
    gc.collect()
    tracemalloc.start()
    kept = task.train_problems()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < path.stat().st_size / 5
    assert kept[3].metadata["fields"]["trace"] == "x" * 10_000
    assert pickle.loads(pickle.dumps(kept[3])).metadata["fields"] == dict(kept[3].metadata["fields"])


PUBLISHED = [
    ("gsm8k_test.jsonl", {"preset": "gsm8k"}, 1319, "18"),
    ("math500.jsonl", {"preset": "math500"}, 500, r"\left( 3, \frac{\pi}{2} \right)"),
    ("math500.jsonl", {"preset": "math"}, 500, r"\left( 3, \frac{\pi}{2} \right)"),
    ("HumanEval.jsonl.gz", {"preset": "humaneval"}, 164, None),
    ("alignbench.jsonl", {"preset": "alignbench"}, 683, None),
    ("mt_bench_question.jsonl", {"preset": "mt_bench"}, 80, ""),
    ("mmlu_global_facts_val.csv", {"preset": "mmlu_csv"}, 7, "B"),
    ("mmlu_stem.jsonl", {"preset": "mmlu"}, 3018, "C"),
    ("aqua.jsonl", {"preset": "aqua"}, 254, "A"),
    ("gaokao2023en.jsonl", {"on_bad_row": "skip"}, 383, None),
    ("svamp.jsonl", {"preset": "svamp"}, 1000, "145.0"),
    ("orz_gpqa_diamond.json", {"preset": "orz"}, 198, "D"),
    ("orz_aime2024.json", {"preset": "orz"}, 30, "73"),
    ("verl_arith_train.parquet", {"preset": "verl", "answer_field": ""}, None, ""),
    ("openinstruct_rlvr_test.jsonl", {"preset": "rlvr"}, None, "3"),
]


@pytest.mark.skipif(REAL is None, reason="the published files are not beside this project")
@pytest.mark.parametrize(("name", "arguments", "count", "first"), PUBLISHED, ids=[p[0] + str(p[1]) for p in PUBLISHED])
def test_published_files_are_tasks_by_configuration_alone(name, arguments, count, first):
    task = FileTask(str(REAL / name), **arguments, verifier="exact")
    found = problems(task)
    rows, _ = task._entries(task.path, None, "")
    repeated = len(rows) - len({entry.key for entry in rows})
    assert len(found) >= len(rows) - repeated
    assert count is None or len(rows) == count
    assert first is None or rows[0].problem.answer == first
    assert all(entry.problem.question.strip() for entry in rows)
    for entry in rows[:50] if first != "" else ():
        assert task.verify(entry.problem, f"Answer: {entry.problem.answer}") == 1.0
