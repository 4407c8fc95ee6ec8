"""Jobs over workers that die: each job's result is there once, in order, whoever did it."""

import threading

import pytest

from rlhf_lightning.errors import RemoteError
from rlhf_lightning.samplers._policy_client import watched
from rlhf_lightning.samplers._spread import Spread


class Fleet:
    """Workers by name; some die at their n-th job."""

    def __init__(self, dies: dict[str, int]):
        self.dies, self.done, self.lock = dies, {}, threading.Lock()

    def __call__(self, worker, job):
        with self.lock:
            mine = self.done.setdefault(worker, [])
            if len(mine) == self.dies.get(worker, -1):
                raise RemoteError(f"{worker} is gone")
            mine.append(job)
        return job * 10


@pytest.mark.parametrize("dies", [{}, {"a": 0}, {"a": 0, "b": 0}, {"a": 1, "b": 2}, {"c": 0}])
def test_every_job_is_done_once(dies):
    fleet, told = Fleet(dies), []
    spread = Spread(list(range(12)), ["a", "b", "c"], fleet)
    assert spread.run(told.append) == [job * 10 for job in range(12)]
    assert sorted(told) == [job * 10 for job in range(12)]
    assert sorted(job for done in fleet.done.values() for job in done) == list(range(12))
    assert {worker for worker, _ in spread.lost} <= set(dies)
    assert spread.redone == len(spread.lost)


def test_the_last_jobs_worker_may_die_when_the_others_are_idle():
    idle, begun = threading.Event(), threading.Event()

    def do(worker, job):
        if worker == "bad":
            begun.set()
            idle.wait(5)
            raise RemoteError("bad is gone")
        begun.wait(5)
        if job == 1:
            threading.Timer(0.05, idle.set).start()
        return worker

    spread = Spread([0, 1], ["bad", "good"], do)
    assert spread.run() == ["good", "good"] and spread.redone == 1


def test_when_none_is_left_each_reason_is_told():
    with pytest.raises(RemoteError, match=r"no server is left: (a|b) is gone; (a|b) is gone"):
        Spread([1, 2, 3], ["a", "b"], Fleet({"a": 1, "b": 0})).run()


def test_no_jobs_and_no_workers():
    assert Spread([], ["a"], Fleet({})).run() == []
    with pytest.raises(RemoteError, match="no server is left"):
        Spread([1], [], Fleet({})).run()


def test_a_bug_is_no_dead_worker():
    def do(worker, job):
        raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        Spread([1, 2], ["a", "b"], do).run()


def test_who_hangs_is_given_up_when_looks_fail():
    hangs, looks = threading.Event(), []

    def look():
        looks.append(1)
        if len(looks) != 2:
            raise RemoteError("no answer")

    with pytest.raises(RemoteError, match="no answer; 3 looks in a row failed while it was at work"):
        watched(hangs.wait, look, every=0.01, patience=3)
    assert len(looks) == 5  # the second one was answered
    hangs.set()


def test_who_answers_is_not_given_up():
    assert watched(lambda: 7, lambda: None, every=0.01, patience=1) == 7
    with pytest.raises(RemoteError, match="broken"):
        watched(lambda: (_ for _ in ()).throw(RemoteError("broken")), lambda: None, every=0.01, patience=1)
