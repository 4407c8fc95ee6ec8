"""Tasks side by side: really at once, in order, without gradient, and torch's threads divided among them."""

import threading

import pytest
import torch

from rlhf_lightning.functional._side_by_side import side_by_side


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_tasks_run_at_once_and_results_are_in_order():
    met = threading.Barrier(2, timeout=20)  # breaks unless both are inside at the same time

    def task(number):
        met.wait()
        return number

    assert side_by_side([lambda: task(1), lambda: task(2)]) == [1, 2]


def test_threads_are_divided_and_left_as_they_were():
    assert side_by_side([torch.get_num_threads] * 2) == [1, 1]
    product = torch.ones(300, 300)
    side_by_side([lambda: product @ product] * 2)  # a first operation must not bring the process's number back
    assert side_by_side([torch.get_num_threads] * 2) == [1, 1]
    assert torch.get_num_threads() == 2
    assert torch.is_grad_enabled()
    assert side_by_side([torch.is_grad_enabled] * 2) == [False, False]


def test_more_tasks_than_threads():
    assert side_by_side([lambda i=i: i for i in range(5)]) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("threads", "tasks"), [(1, 2), (2, 1)])
def test_one_thread_or_one_task_stays_where_it_is(threads, tasks):
    torch.set_num_threads(threads)
    assert side_by_side([threading.get_ident] * tasks) == [threading.get_ident()] * tasks


def test_an_error_is_raised_when_the_others_have_ended():
    ended, go = [], threading.Event()

    def fails():
        go.set()
        raise ZeroDivisionError

    def goes_on():
        go.wait(20)
        torch.ones(400, 400) @ torch.ones(400, 400)
        ended.append(True)

    with pytest.raises(ZeroDivisionError):
        side_by_side([fails, goes_on])
    assert ended
