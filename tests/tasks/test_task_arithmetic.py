import itertools
import pickle
from itertools import islice, permutations

import pytest

from rlhf_lightning.data.tasks import ChainedArithmetic
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.types import Problem

PROBLEM = Problem("7+15+12", "7+15+12=", "34", {"operands": (7, 15, 12)})


def make(**arguments):
    return ChainedArithmetic(**{"held_out": 20, **arguments})


@pytest.mark.parametrize(
    ("response", "score"),
    [
        ("22+12\n=34", 1.0),
        ("12+12\n=34", 1.0),  # the outcome alone counts
        ("34", 1.0),  # the only line has no '='
        ("=34", 0.0),
        ("22+12\n34", 0.0),
        ("22+12\n=34\n", 0.0),
        ("22+12\n=34 ", 0.0),
        ("22+12\n=034", 0.0),
        ("22+12\n=24", 0.0),
        ("22+12=34", 0.0),
        ("", 0.0),
    ],
)
def test_only_the_exact_last_line_counts(response, score):
    assert make().verify(PROBLEM, response) == score


@pytest.mark.parametrize(
    ("response", "steps"),
    [
        ("22+12\n=34", (True, True)),
        ("12+12\n=24", (False, True)),  # forgot a carry, then went on correctly from the wrong number
        ("22+12\n=24", (True, False)),
        ("22+13\n=35", (False, True)),  # copied wrongly
        ("34", (False,)),  # skipped a step
        ("22+12\n=34\n=34", (True, True, False)),  # nothing was left to add
        ("twenty\n=34", (False, False)),
        ("22+12\n34", (True, False)),  # a later line begins with '='
        ("=22+12\n=34", (False, False)),
        ("022+12\n=34", (False, False)),
    ],
)
def test_each_step_is_judged_by_its_predecessor(response, steps):
    assert make().check_steps(PROBLEM, response) == steps


@pytest.mark.parametrize(
    ("response", "answer"),
    [("22+12\n=34", "34"), ("34", "34"), ("22+12\n=35", "35"), ("22+12\n34", None), ("=34", None), ("22+12", None)],
)
def test_the_answer_is_the_last_lines_number(response, answer):
    problem = Problem("p", "7+15+12=", "34", {"operands": (7, 15, 12)})
    task = ChainedArithmetic()
    assert task.answer_of(problem, response) == answer
    assert task.verify(problem, response) == float(answer == "34")


def test_problems_read_as_the_first_half_of_an_equation():
    for problem in make(max_operand=5, held_out=10).held_out_problems():
        assert eval(problem.question.removesuffix("=")) == int(problem.answer)
        assert problem.question.endswith("=")


def test_every_sum_is_held_out_or_trained_on_and_none_is_both():
    task = make(terms=3, max_operand=4, held_out=10)
    held_out = {p.metadata["operands"] for p in task.held_out_problems()}
    trained = [p.metadata["operands"] for p in task.train_problems()]
    permuted = {q for p in held_out for q in permutations(p)}
    assert len(held_out) == len({tuple(sorted(p)) for p in held_out}) == 10
    assert set(trained) == set(itertools.product(range(5), repeat=3)) - permuted
    assert len(trained) == len(set(trained))


def test_too_many_sums_to_list_are_drawn_distinct_and_apart():
    task = make(terms=5, max_operand=99, held_out=50, train_size=300)
    held_out = {tuple(sorted(p.metadata["operands"])) for p in task.held_out_problems()}
    trained = [p.metadata["operands"] for p in task.train_problems()]
    assert len(held_out) == 50
    assert len(set(trained)) == 300
    assert not held_out & {tuple(sorted(operands)) for operands in trained}


def test_the_seed_decides_everything():
    def everything(seed):
        task = make(seed=seed)
        demonstrations = [d.response for d in islice(task.demonstrations(), 30)]
        return [p.id for p in task.held_out_problems()], [p.id for p in task.train_problems()[:30]], demonstrations

    assert everything(3) == everything(3)
    assert all(ours != theirs for ours, theirs in zip(everything(3), everything(4), strict=True))


def test_demonstrations_never_show_a_held_out_problem():
    task = make(terms=2, max_operand=9, held_out=25)
    held_out = {tuple(sorted(p.metadata["operands"])) for p in task.held_out_problems()}
    shown = {tuple(sorted(d.problem.metadata["operands"])) for d in islice(task.demonstrations(), 500)}
    assert not shown & held_out


def test_perfect_demonstrations_are_right():
    for demonstration in islice(make(carry_error=0.0, terms=4).demonstrations(), 100):
        assert demonstration.correct
        assert demonstration.step_correct == (True, True, True)


def test_a_forgotten_carry_costs_ten_and_labels_say_so():
    """Every step that has a carry forgets it; the expected text is worked out by a slow loop of its own."""
    wrong = 0
    for demonstration in islice(make(carry_error=1.0).demonstrations(), 200):
        a, b, c = demonstration.problem.metadata["operands"]
        first = int(str(a + b)) - (10 if (a % 10) + (b % 10) > 9 else 0)
        second = first + c - (10 if (first % 10) + (c % 10) > 9 else 0)
        assert demonstration.response == f"{first}+{c}\n={second}"
        assert demonstration.step_correct == (first == a + b, second == first + c)
        assert demonstration.correct == (second == a + b + c)
        wrong += not demonstration.correct
    assert wrong > 50


def test_off_by_one_steps():
    for demonstration in islice(make(carry_error=0.0, off_by_one_error=1.0, terms=2).demonstrations(), 100):
        assert abs(int(demonstration.response) - int(demonstration.problem.answer)) == 1
        assert demonstration.step_correct == (False,)


def test_carries_are_forgotten_as_often_as_declared():
    """Of the first steps with a carry, 60 % ± 4 standard deviations (0.0155 each at 1000 draws)."""
    task = make(carry_error=0.6)
    with_carry = (d for d in task.demonstrations() if sum(x % 10 for x in d.problem.metadata["operands"][:2]) >= 10)
    share = sum(not d.step_correct[0] for d in islice(with_carry, 1000)) / 1000
    assert 0.538 < share < 0.662


def test_problems_behave_as_a_sequence_and_pickle():
    problems = make().train_problems()
    assert problems[-1] == problems[len(problems) - 1] == list(problems[-2:])[1]
    with pytest.raises(IndexError):
        problems[len(problems)]
    task = pickle.loads(pickle.dumps(make(seed=5)))
    assert [p.id for p in task.held_out_problems()] == [p.id for p in make(seed=5).held_out_problems()]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"terms": 1}, "terms must be at least 2, got 1"),
        ({"max_operand": 0}, "max_operand must be at least 1, got 0"),
        ({"held_out": 0}, "held_out must be at least 1, got 0"),
        ({"carry_error": 1.5}, r"forget_carry must be in \[0, 1\], got 1.5"),
        # 220 = C(9 + 3, 3) multisets of three digits
        ({"max_operand": 9, "held_out": 111}, "held_out must be at most 110"),
    ],
)
def test_impossible_arguments_are_refused(arguments, said):
    with pytest.raises(ConfigError, match=said):
        make(**arguments)
