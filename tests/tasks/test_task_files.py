import json
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlhf_lightning.data.tasks import JsonlTask, ParquetTask
from rlhf_lightning.errors import ConfigError, DataError


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def sums(numbers):
    return [{"question": f"{n} plus one?", "answer": n + 1} for n in numbers]


@pytest.fixture
def train(tmp_path):
    return write(tmp_path / "train.jsonl", sums(range(30)))


def questions(problems):
    return {p.question for p in problems}


def test_a_share_is_held_out_and_the_rest_trained_on(train):
    task = JsonlTask(train, held_out_fraction=0.2, verifier="numeric")
    assert len(task.held_out_problems()) == 6
    assert questions(task.held_out_problems()) | questions(task.train_problems()) == {
        f"{n} plus one?" for n in range(30)
    }
    assert not questions(task.held_out_problems()) & questions(task.train_problems())


def test_the_share_depends_on_texts_and_seed_not_on_the_order_of_lines(train, tmp_path):
    backwards = write(tmp_path / "other.jsonl", sums(reversed(range(30))))
    assert questions(JsonlTask(train).held_out_problems()) == questions(JsonlTask(backwards).held_out_problems())
    assert questions(JsonlTask(train, seed=1).held_out_problems()) != questions(JsonlTask(train).held_out_problems())


def test_repeated_questions_stay_on_one_side(tmp_path):
    path = write(tmp_path / "twice.jsonl", [*sums(range(20)), *sums(range(20))])
    task = JsonlTask(path, held_out_fraction=0.5)
    assert len(task.held_out_problems()) == 10
    assert len(task.train_problems()) == 20
    assert not questions(task.held_out_problems()) & questions(task.train_problems())


def test_the_held_out_file_wins_whatever_the_white_space(train, tmp_path):
    held_out = write(tmp_path / "test.jsonl", [{"question": " 3  plus one?\n", "answer": "4"}, *sums([50])])
    task = JsonlTask(train, held_out)
    assert [p.id for p in task.held_out_problems()] == ["held-out/test.jsonl:1", "held-out/test.jsonl:2"]
    assert "3 plus one?" not in questions(task.train_problems())
    assert len(task.train_problems()) == 29
    assert task.dropped == 1


def test_parquet_reads_like_jsonl(tmp_path):
    path = str(tmp_path / "train.parquet")
    pq.write_table(pa.Table.from_pylist(sums(range(10))), path)
    task = ParquetTask(path, verifier="exact")
    problem = next(p for p in [*task.train_problems(), *task.held_out_problems()] if p.question == "7 plus one?")
    assert (problem.answer, problem.id, problem.metadata["place"]) == ("8", "train.parquet:8", f"{path}, row 8")


def test_gsm8k_rows(tmp_path):
    rows = [{"question": f"Q{n}", "answer": f"Think <<1+1=2>> of {n}.\n#### 1,23{n}"} for n in range(4)]
    task = JsonlTask(write(tmp_path / "gsm8k.jsonl", rows), preset="gsm8k", verifier="numeric")
    problem = task.train_problems()[0]
    assert problem.answer.startswith("1,23")
    assert task.verify(problem, f"So it costs ${problem.answer.replace(',', '')}.00 in all.") == 1.0
    assert task.verify(problem, "I say 7.") == 0.0
    assert task.answer_of(problem, "Answer: 7 apples\nAnswer: 8.0") == "8"
    assert task.answer_of(problem, "none") is None
    demonstration = next(task.demonstrations())
    assert demonstration.response == f"Think <<1+1=2>> of {problem.question[1]}.\n#### {problem.answer}"


def test_math_rows_with_nested_boxes(tmp_path):
    pytest.importorskip("math_verify")
    rows = [{"problem": f"P{n}", "solution": r"\boxed{0}, no: $\boxed{\frac{1}{2}}$."} for n in range(2)]
    task = JsonlTask(write(tmp_path / "math.jsonl", rows), preset="math")
    problem = task.train_problems()[0]
    assert problem.answer == r"\frac{1}{2}"
    assert task.verify(problem, r"It is $\boxed{0.5}$") == 1.0
    assert task.verify(problem, r"It is $\boxed{0.25}$") == 0.0


def test_fields_and_formats_of_ones_own(tmp_path):
    path = write(tmp_path / "own.jsonl", [{"q": f"Q{n}", "a": "yes", "work": "It is.\nyes"} for n in range(3)])
    task = JsonlTask(path, question_field="q", answer_field="a", response_field="work", verifier="exact",
                     prompt_format="Say: {question}", answer_pattern=r"(?m)^(\w+)$", label="mine")  # fmt: skip
    problem = task.train_problems()[0]
    assert (task.name, problem.question[:6], problem.answer) == ("mine", "Say: Q", "yes")
    assert task.verify(problem, "It is.\nyes") == 1.0
    assert [d.response for d in task.demonstrations()] == ["It is.\nyes"] * 2


def test_it_pickles_without_its_rows(train):
    task = JsonlTask(train, verifier="numeric")
    problem = task.train_problems()[0]
    packed = pickle.dumps(task)
    assert b"plus one" not in packed
    assert pickle.loads(packed).verify(problem, problem.answer) == 1.0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"question": "a", "answer": 1}\n{"question": "b"\n', "bad.jsonl, line 2: not valid JSON, .* at column 17"),
        ('{"question": "a", "answer": 1}\n\n[1]\n', "bad.jsonl, line 3: must be a JSON object, got list"),
        (
            '{"question": "a", "answers": 1}\n',
            "line 1: no field 'answer'. Did you mean 'answers'.*Present: question, an",
        ),
        ('{"question": ["a"], "answer": 1}\n', "line 1: field 'question' must be a list of {role, content}, got list"),
        (
            '{"question": "a", "answer": null}\n',
            "line 1: field 'answer' must be text, a number, or a list of those, got None",
        ),
        ('{"question": " ", "answer": 1}\n', "line 1: field 'question' is empty"),
        ('{"question": "a", "answer": " "}\n', "line 1: field 'answer' holds no answer"),
        ("\n\n", "bad.jsonl: no rows"),
        ('{"question": "a", "answer": 1}\n', "no training problem is left beside the 1 held-out"),
    ],
)
def test_malformed_files_are_named_by_line(tmp_path, text, said):
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=said):
        JsonlTask(str(path)).train_problems()


def test_bytes_that_are_no_text(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"question": "a", "answer": 1}\n{"question": "\xff"}\n')
    with pytest.raises(DataError, match="line 2: not UTF-8 text"):
        JsonlTask(str(path)).train_problems()


def test_a_broken_parquet_file(tmp_path):
    path = tmp_path / "bad.parquet"
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match=r"bad\.parquet: not a readable Parquet file"):
        ParquetTask(str(path)).train_problems()


def test_missing_files_name_the_nearest(train, tmp_path):
    with pytest.raises(DataError, match=r"trian\.jsonl: no such file\. The nearest file there is 'train\.jsonl'"):
        JsonlTask(str(tmp_path / "trian.jsonl")).train_problems()
    with pytest.raises(DataError, match="no folder"):
        JsonlTask(str(tmp_path / "nowhere" / "train.jsonl")).train_problems()
    with pytest.raises(DataError, match=r"cannot read files of kind '\.xlsx'; known: \.csv, \.json, \.jsonl"):
        (tmp_path / "a.xlsx").write_text("x")
        JsonlTask(str(tmp_path / "a.xlsx")).train_problems()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"preset": "gsm8"}, "no 'gsm8'. Did you mean 'gsm8k'"),
        ({"verifier": "numerical"}, "no 'numerical'. Did you mean 'numeric'"),
        ({"held_out_fraction": 1.0}, r"held_out_fraction must be in \(0, 1\), got 1.0"),
        ({"prompt_format": "x"}, "prompt_format must contain"),
    ],
)
def test_bad_arguments_are_refused(train, arguments, said):
    with pytest.raises(ConfigError, match=said):
        JsonlTask(train, **arguments)


def test_demonstrations_need_a_field(train):
    with pytest.raises(ConfigError, match="response_field"):
        next(JsonlTask(train).demonstrations())
