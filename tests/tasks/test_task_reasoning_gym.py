import pickle

import pytest

from rlhf_lightning.data.tasks import ReasoningGym
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.types import Problem

pytest.importorskip("reasoning_gym")

SMALL = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}


def make(**arguments):
    return ReasoningGym(**{"family": "chain_sum", "params": SMALL, "train_size": 300, "held_out": 40, **arguments})


def test_no_training_question_is_held_out_though_the_family_repeats_itself():
    task = make()
    raw = ReasoningGym("chain_sum", SMALL, train_size=300, held_out=1)
    held_out = {p.question for p in task.held_out_problems()}
    assert len(held_out) == 40
    assert held_out & {p.question for p in raw.train_problems()}  # it would have met them
    assert not held_out & {p.question for p in task.train_problems()}


def test_ids_are_distinct():
    task = make()
    ids = [p.id for p in [*task.train_problems(), *task.held_out_problems()]]
    assert len(ids) == len(set(ids)) == 340


def test_problems_are_made_alike_each_time_and_differ_by_seed():
    first, again, other = make(seed=1), make(seed=1), make(seed=2)
    assert list(first.held_out_problems()) == list(again.held_out_problems())
    assert first.train_problems()[17] == again.train_problems()[17]
    assert [p.question for p in first.held_out_problems()] != [p.question for p in other.held_out_problems()]


def test_problems_are_right_sums():
    for problem in make().train_problems()[:20]:
        assert eval(problem.question.split(":")[1].removesuffix("=")) == int(problem.answer)


def asking(task):
    problem = task.held_out_problems()[0]
    return problem, problem.answer


def test_answers_are_taken_from_after_the_last_marker_or_whole():
    task = make()
    problem, answer = asking(task)
    wrong = str(int(answer) + 1)
    assert task.verify(problem, f" {answer}\n") == 1.0
    assert task.verify(problem, f"Let me see.\nAnswer: {wrong}, no.\nAnswer: {answer}") == 1.0
    assert task.verify(problem, f"Answer: {answer}\nAnswer: {wrong}") == 0.0
    assert task.verify(problem, "") == 0.0
    assert task.answer_of(problem, f"Let me see.\nAnswer: {wrong}, no.\nAnswer:  {answer}\n") == answer


def test_a_pattern_of_ones_own():
    task = make(answer_pattern=r"<answer>(.*?)</answer>")
    problem, answer = asking(task)
    assert task.verify(problem, f"<answer>{answer}</answer>") == 1.0
    assert task.verify(problem, answer) == 0.0
    assert task.answer_of(problem, answer) is None


def test_partial_marks_only_where_asked_for():
    """chain_sum gives len(answer) / len(text) to a text that contains the answer."""
    entry = {"question": "q", "answer": "7", "metadata": {}}
    problem = Problem("p", "q", "7", {"entry": entry})
    assert make(exact=False).verify(problem, "it is 7") == pytest.approx(1 / 7)
    assert make(exact=True).verify(problem, "it is 7") == 0.0


def test_the_prompt_format_surrounds_the_question():
    problem = make(prompt_format="Q: {question}\nOnly the number.").held_out_problems()[0]
    assert problem.question.startswith("Q: State")
    assert problem.question.endswith("=\nOnly the number.")


def test_families_that_draw_all_at_once_work():
    task = ReasoningGym("gsm_symbolic", train_size=50, held_out=5)
    assert len({p.question for p in task.held_out_problems()}) == 5
    assert task.verify(task.train_problems()[3], f"Answer: {task.train_problems()[3].answer}") == 1.0


def test_it_pickles_small_and_works_after():
    task = make(train_size=100_000)
    problem = task.train_problems()[99_999]
    packed = pickle.dumps(task)
    assert len(packed) < 1000
    assert pickle.loads(packed).verify(problem, problem.answer) == 1.0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"family": "chain_sums"}, "no 'chain_sums'. Did you mean 'chain_sum'"),
        ({"params": {"max_term": 3}}, "no 'max_term'. Did you mean 'max_terms'"),
        ({"params": {"min_terms": 5, "max_terms": 2}}, "params .* are refused: max_terms must be"),
        ({"params": {"seed": 5}}, "params.seed is set by the task"),
        ({"prompt_format": "Q:"}, "prompt_format must contain {question}"),
        ({"answer_pattern": "("}, "answer_pattern: '\\(' is no regular expression"),
        ({"answer_pattern": "a"}, "must have exactly one group"),
        ({"train_size": 0}, "train_size must be at least 1"),
    ],
)
def test_bad_arguments_are_refused_at_once(arguments, said):
    with pytest.raises(ConfigError, match=said):
        make(**arguments)


def test_a_family_with_too_few_problems_says_so():
    leap_years = {"tasks": ["is_leap_year"], "leap_year_range": 2}
    task = ReasoningGym("calendar_arithmetic", leap_years, train_size=10, held_out=50)
    with pytest.raises(ConfigError, match=r"held_out is 50, but only \d+ different problems"):
        task.held_out_problems()
