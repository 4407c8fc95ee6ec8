"""``rlhf label-steps`` with a scripted policy: labels by hand, shared prefixes, going on after a kill, bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from label_fakes import POLICY, TASK, Script, chain, finish, write_solutions

from rlhf_lightning.errors import ConfigError, DataError, RunFolderError
from rlhf_lightning.labelling import LabelSteps
from rlhf_lightning.protocols import Scorer
from rlhf_lightning.types import Scores

RIGHT = "{1}\n={2}\n={3}"
SLIP = "{1}\n={2}\n={3}0"  # the last step alone is wrong
ASTRAY = "1{1}\n=1{2}\n=1{3}"  # the first step is wrong, the others follow from it


def job(path: Path | None, out: Path, sampler: Script, **arguments) -> LabelSteps:
    given = {"solutions": str(path) if path else None, "rollouts": 4, "questions_per_batch": 2}
    return LabelSteps(POLICY, TASK, str(out), sampler=sampler, **given | arguments)


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def labels(path: Path) -> list[list[float | None]]:
    return [[step["label"] for step in row["steps"]] for row in rows(path)]


def half_right(text: str, k: int) -> str:
    """Right for even k, and wrong by a digit for odd."""
    return finish(text) + ("" if k % 2 == 0 else "0")


@pytest.fixture
def problems():
    return list(TASK.train_problems()[:5])


@pytest.fixture
def solutions(tmp_path: Path, problems) -> Path:
    return write_solutions(tmp_path / "solutions.jsonl", problems, [RIGHT, SLIP, ASTRAY])


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("hard", [[1, 1, 1], [1, 1, 0], [0, 0, 0]]),
        ("soft", [[0.5, 0.5, 1], [0.5, 0.5, 0], [0, 0, 0]]),
        ("binary_search", [[1, 1, 1], [1, 1, 0], [0, 0, 0]]),
    ],
)
def test_labels_by_hand(solutions: Path, tmp_path: Path, method: str, expected):
    job(solutions, tmp_path / "x.jsonl", Script(half_right), method=method).run()
    assert labels(tmp_path / "x.jsonl") == expected * 5


def test_a_line_is_the_solutions_with_its_steps(solutions: Path, tmp_path: Path, problems):
    job(solutions, tmp_path / "x.jsonl", Script(half_right), method="soft", label="tiny").run()
    given, found = rows(solutions), rows(tmp_path / "x.jsonl")
    assert [{key: row[key] for key in given[0]} for row in found] == given
    _, first, second, third = chain(problems[0])
    middle = len(first) + 2 + len(second)
    assert found[0]["steps"] == [
        {"end": len(first), "text": first, "label": 0.5, "rollouts": 4, "successes": 2},
        {"end": middle, "text": f"={second}", "label": 0.5, "rollouts": 4, "successes": 2},
        {"end": middle + 2 + len(third), "text": f"={third}", "label": 1.0, "rollouts": 0, "successes": 0},
    ]
    assert (found[0]["method"], found[0]["completer"], found[0]["policy"]) == ("soft", "tiny", "p")


def test_a_prefix_that_solutions_share_is_completed_once(solutions: Path, tmp_path: Path, problems):
    sampler = Script(half_right)
    job(solutions, tmp_path / "x.jsonl", sampler).run()
    assert len(sampler.asked) == len(set(sampler.asked)) == 5 * 4  # two of RIGHT and SLIP together, two of ASTRAY
    start, first, second, _ = chain(problems[0])
    assert f"{start}={first}\n" in sampler.asked
    assert f"{start}={first}\n={second}\n" in sampler.asked


def test_the_search_asks_only_about_wrong_solutions_and_half_of_what_is_left(solutions: Path, tmp_path: Path, problems):
    sampler = Script(half_right)
    job(solutions, tmp_path / "x.jsonl", sampler, method="binary_search").run()
    start, first, second, _ = chain(problems[0])
    asked = [text for text in sampler.asked if text.startswith(f"{start}=")]
    # of three steps, the prefix of one comes first; SLIP's is good, so that of two follows; ASTRAY's is bad, and all
    assert asked == [f"{start}={first}\n", f"{start}=1{first}\n", f"{start}={first}\n={second}\n"]
    counts = [[step["rollouts"] for step in row["steps"]] for row in rows(tmp_path / "x.jsonl")[:3]]
    assert counts == [[4, 4, 0], [4, 4, 0], [4, 0, 0]]  # what others found out of RIGHT's prefixes stands there too


@pytest.mark.parametrize("method", ["hard", "soft", "binary_search"])
@pytest.mark.parametrize("cut", [None, -10, 1500])
def test_a_stopped_job_goes_on_and_completes_nothing_twice(solutions: Path, tmp_path: Path, method: str, cut):
    whole, path, sampler = tmp_path / "whole.jsonl", tmp_path / "x.jsonl", Script(half_right)
    job(solutions, whole, sampler, method=method).run()
    stopped = Script(half_right, calls=3)
    with pytest.raises(KeyboardInterrupt):
        job(solutions, path, stopped, method=method).run()
    kept = path.read_bytes()[:cut]
    assert 0 < len(kept) < len(whole.read_bytes())
    path.write_bytes(kept)
    written = {
        (row["question"] + row["response"])[: len(row["question"]) + step["end"]] + "\n"
        for row in rows_of(kept)
        for step in row["steps"]
        if step["rollouts"]
    }
    again = Script(half_right)
    job(solutions, path, again, method=method).run()
    assert path.read_bytes() == whole.read_bytes()
    assert not written & set(again.asked)
    assert written | set(again.asked) == set(sampler.asked)


def rows_of(content: bytes) -> list[dict]:
    return [json.loads(line) for line in content[: content.rfind(b"\n") + 1].splitlines()]


def test_nothing_is_loaded_when_nothing_is_missing(solutions: Path, tmp_path: Path, capsys):
    job(solutions, tmp_path / "x.jsonl", Script(half_right)).run()
    before = (tmp_path / "x.jsonl").read_bytes()
    job(solutions, tmp_path / "x.jsonl", Script(half_right, calls=1)).run()
    assert (tmp_path / "x.jsonl").read_bytes() == before
    assert "no rollouts were missing" in capsys.readouterr().out


def test_a_completions_seed_depends_on_nothing_but_its_prefix(solutions: Path, tmp_path: Path):
    together, apart = Script(half_right), Script(half_right)
    job(solutions, tmp_path / "x.jsonl", together, questions_per_batch=5).run()
    job(solutions, tmp_path / "y.jsonl", apart, questions_per_batch=1).run()
    by_prefix = [dict(zip(s.asked, torch.tensor(s.seeds).view(-1, 4).tolist(), strict=True)) for s in (together, apart)]
    assert by_prefix[0] == by_prefix[1]
    assert len(set(together.seeds)) == len(together.seeds)


class Hangs(Scorer):
    """Fails on the first completion of each prefix, as a verifier that hangs."""

    name = "hangs"

    def __call__(self, rollout):
        problems = [rollout.prompt_of(b).problem for b in range(len(rollout.texts))]
        values = torch.tensor([TASK.verify(p, text) for p, text in zip(problems, rollout.texts, strict=True)])
        failed = torch.arange(len(values)) % 4 == 0
        return Scores(values, {"hangs": values}, failed)


def test_a_completion_whose_verifier_fails_does_not_count(solutions: Path, tmp_path: Path):
    job(solutions, tmp_path / "x.jsonl", Script(half_right), method="soft", verifier=Hangs()).run()
    first = rows(tmp_path / "x.jsonl")[0]["steps"][0]
    assert (first["rollouts"], first["successes"], first["label"]) == (3, 1, pytest.approx(1 / 3))


def test_a_verdict_that_is_not_known_gives_no_label(tmp_path: Path, problems):
    path = write_solutions(tmp_path / "s.jsonl", problems[:1], [RIGHT], failed=True)
    job(path, tmp_path / "x.jsonl", Script(half_right)).run()
    job(path, tmp_path / "y.jsonl", Script(half_right), method="binary_search").run()
    assert labels(tmp_path / "x.jsonl") == [[1.0, 1.0, None]]
    assert labels(tmp_path / "y.jsonl") == [[None, None, None]]


def test_a_response_of_one_step_and_an_empty_one_need_no_completions(tmp_path: Path, problems):
    path = write_solutions(tmp_path / "s.jsonl", problems[:1], ["{3}", "", " \n"])
    sampler = Script(half_right)
    job(path, tmp_path / "x.jsonl", sampler).run()
    assert labels(tmp_path / "x.jsonl") == [[1.0], [], []]
    assert not sampler.asked


def test_demonstrations_are_labelled_too(tmp_path: Path):
    job(None, tmp_path / "x.jsonl", Script(lambda text, k: finish(text)), demonstrations=30).run()
    found, given = rows(tmp_path / "x.jsonl"), TASK.demonstrations()
    assert len(found) == 30
    for row, demonstration in zip(found, given, strict=False):
        assert row["response"] == demonstration.response
        # a completer that goes on rightly makes a prefix right exactly if all its steps are, or their errors cancel
        left = [sum(int(n) for n in text.strip("=").split("+")) for text in row["response"].split("\n")]
        assert [step["label"] for step in row["steps"]] == [float(total == int(row["answer"])) for total in left]


def test_a_tokenizer_that_joins_the_delimiter_with_what_follows_is_continued_from_the_prefix(problems):
    from rlhf_lightning.data.render import Renderer
    from rlhf_lightning.labelling.prefixes import cut_into_steps
    from rlhf_lightning.labelling.solutions import Solution

    fields = {"task": TASK.name, "response": "ab\n=cd\ne"}
    joined = joining_tokenizer()
    (steps,) = cut_into_steps(Renderer(joined), [Solution(fields, problems[0])], "\n")
    question = tuple(joined(problems[0].question)["input_ids"])
    text = {index: token for token, index in joined.get_vocab().items()}
    assert [[text[t] for t in prompt.tokens[len(question) :]] for prompt in steps.prompts] == [
        ["a", "b", "\n"],  # the response's own token is "\n=", which goes beyond the prefix
        ["a", "b", "\n=", "c", "d", "\n"],
    ]
    assert steps.prefixes == ("ab\n", "ab\n=cd\n")


def joining_tokenizer():
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate(["<eos>", "\n=", "\n", *"0123456789+=abcde"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<eos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("\n=|[\\s\\S]"), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"rollouts": 0}, "rollouts must be at least 1, got 0"),
        ({"questions_per_batch": 0}, "questions_per_batch must be at least 1, got 0"),
        ({"delimiter": ""}, "delimiter must not be empty"),
        ({"demonstrations": 3}, "give exactly one of solutions"),
        ({"solutions": None}, "give exactly one of solutions"),
        ({"solutions": None, "demonstrations": 0}, "demonstrations must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_is_refused(solutions: Path, tmp_path: Path, arguments, expected):
    with pytest.raises(ConfigError, match=expected):
        job(solutions, tmp_path / "x.jsonl", Script(half_right), **arguments)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"task": "chained_arithmetik"}, "solutions.jsonl, line 2: is of task 'chained_arithmetik', .* Did you mean"),
        ({"id": "1+1"}, "line 2: task chained_arithmetic has no problem '1[+]1' with this question"),
        ({"question": "1+1="}, "line 2: task chained_arithmetic has no problem"),
        ({"response": None}, "line 2: field 'response' must be text"),
        ({"correct": "yes"}, "line 2: field 'correct' must be a number or null, got 'yes'"),
        ({"response": "\n".join("1234567890") * 5}, "tokens before its last step leave no room in a context of 64"),
    ],
)
def test_solutions_that_cannot_be_are_refused(solutions: Path, tmp_path: Path, change, expected):
    lines = solutions.read_text().splitlines()
    lines[1] = json.dumps(json.loads(lines[1]) | change)
    solutions.write_text("\n".join(lines))
    sampler = Script(half_right)
    with pytest.raises(DataError, match=expected):
        job(solutions, tmp_path / "x.jsonl", sampler).run()
    assert not sampler.asked


def test_a_missing_file_names_the_nearest(solutions: Path, tmp_path: Path):
    with pytest.raises(DataError, match=r"no such file\. The nearest file there is 'solutions\.jsonl'"):
        job(tmp_path / "solution.jsonl", tmp_path / "x.jsonl", Script(half_right)).run()


def test_a_missing_field_is_named(solutions: Path, tmp_path: Path):
    solutions.write_text('{"task": "chained_arithmetic", "idd": "1"}\n')
    with pytest.raises(DataError, match=r"line 1: no field 'id'\. Did you mean 'idd'"):
        job(solutions, tmp_path / "x.jsonl", Script(half_right)).run()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"method": "soft"}, 'was made with method "hard", now it is "soft"'),
        ({"rollouts": 5}, "was made with rollouts 4, now it is 5"),
        ({"delimiter": "+"}, "was made with delimiter"),
    ],
)
def test_labels_of_other_settings_are_not_added_to(solutions: Path, tmp_path: Path, change, expected):
    job(solutions, tmp_path / "x.jsonl", Script(half_right)).run()
    with pytest.raises(RunFolderError, match=expected):
        job(solutions, tmp_path / "x.jsonl", Script(half_right), **change).run()


def test_labels_of_other_solutions_are_not_added_to(solutions: Path, tmp_path: Path, problems):
    job(solutions, tmp_path / "x.jsonl", Script(half_right)).run()
    write_solutions(solutions, problems, [RIGHT, ASTRAY])
    with pytest.raises(RunFolderError, match="line 2: is not the solution that stands there in"):
        job(solutions, tmp_path / "x.jsonl", Script(half_right)).run()
