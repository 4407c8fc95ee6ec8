import logging
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from faulty_tasks import Obedient, Trusted, Unimportable

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.scorers import VerifierScorer
from rlhf_lightning.scorers._child import score
from rlhf_lightning.types import Problem


@pytest.fixture(scope="module")
def scorer():
    """One scorer for all tests of this file, since processes take a second to start."""
    made = VerifierScorer(time_limit=0.5, failure_score=-1.0, workers=2)
    made.bind({"obedient": Obedient(), "trusted": Trusted()})
    yield made
    made.close()


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def gone(pid, within=5.0):
    until = time.monotonic() + within
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.02)
    return not alive(pid)


def test_each_failure_costs_only_its_own_response(scorer, rollout_of):
    texts = ["1", "hang", "0.25", "boom", "2", "crash", "3", "nan", "4", "text", "5", "swallow", "6"]
    scores = scorer(rollout_of(texts))
    assert scores.values.tolist() == [1, -1, 0.25, -1, 2, -1, 3, -1, 4, -1, 5, -1, 6]
    assert scores.failed.tolist() == [False, True] * 6 + [False]
    assert scores.values.dtype == torch.float32
    assert scores.parts["verifier"].tolist() == scores.values.tolist()


def test_a_busy_loop_is_stopped_too_and_the_reason_told(scorer):
    items = [("obedient", Problem("p", "q"), text) for text in ("spin", "crash", "boom", "7")]
    assert scorer.outcomes(items) == [
        (None, "stopped after 0.5 s"),
        (None, "the verifier ended its process (exit code 3)"),
        (None, "ValueError: bad answer"),
        (7.0, None),
    ]


def test_many_responses_keep_their_order(scorer, rollout_of):
    scores = scorer(rollout_of([str(i) for i in range(600)], group=4))
    assert scores.values.tolist() == list(range(600))
    assert not scores.failed.any()


def test_processes_stay_between_calls_and_are_not_this_one(scorer, rollout_of):
    first = set(scorer(rollout_of(["pid"] * 20)).values.tolist())
    second = set(scorer(rollout_of(["pid"] * 20)).values.tolist())
    assert float(os.getpid()) not in first
    assert len(first | second) <= 2


def test_trusted_tasks_run_in_place_and_raise_without_harm(scorer, rollout_of):
    scores = scorer(rollout_of(["pid", "boom", "1"], task="trusted"))
    assert scores.values.tolist() == [float(os.getpid()), -1.0, 1.0]
    assert scores.failed.tolist() == [False, True, False]


def test_what_a_verifier_prints_does_no_harm(scorer, rollout_of):
    assert scorer(rollout_of(["chatter", "chatter"])).values.tolist() == [1.0, 1.0]


def test_a_kill_reaches_what_the_verifier_started(scorer, rollout_of, tmp_path):
    pid_file = tmp_path / "pid"
    scores = scorer(rollout_of(["leave_a_child"], metadata={"pid_file": str(pid_file)}))
    assert scores.failed.tolist() == [True]
    assert gone(int(pid_file.read_text()))


def test_failures_are_told_once_a_rollout(scorer, rollout_of, caplog):
    with caplog.at_level(logging.WARNING):
        scorer(rollout_of(["boom", "1", "boom"]))
    (message,) = [record.getMessage() for record in caplog.records]
    assert "2 of 3 responses could not be verified and were scored -1" in message
    assert "task obedient, problem p1: ValueError: bad answer" in message


def test_an_empty_rollout(scorer, rollout_of):
    assert scorer(rollout_of([])).values.shape == (0,)


def test_close_ends_the_processes_and_the_next_call_starts_new_ones(rollout_of):
    scorer = VerifierScorer()
    scorer.bind({"obedient": Obedient()})
    (pid,) = {int(v) for v in scorer(rollout_of(["pid"])).values.tolist()}
    copy = pickle.loads(pickle.dumps(scorer))
    scorer.close()
    assert gone(pid)
    assert copy(rollout_of(["pid"])).values.item() != pid
    copy.close()


def test_isolate_false_runs_all_in_place(rollout_of):
    scorer = VerifierScorer(isolate=False)
    scorer.bind({"obedient": Obedient()})
    assert scorer(rollout_of(["pid"])).values.item() == os.getpid()


@pytest.mark.parametrize("exit_by", ["pass", "import os; os._exit(1)"])
def test_no_process_outlives_its_owner(exit_by):
    """Neither an ordinary exit nor a sudden one leaves a process behind, though its verifier hangs."""
    script = f"""
import sys, threading, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
from faulty_tasks import Obedient
from rlhf_lightning.scorers import VerifierScorer
from rlhf_lightning.types import Problem
scorer = VerifierScorer(time_limit=50)
scorer.bind({{"obedient": Obedient()}})
pid = int(scorer.outcomes([("obedient", Problem("p", "q"), "pid")])[0][0])
hanging = threading.Thread(target=scorer.outcomes, args=([("obedient", Problem("p", "q"), "hang")],), daemon=True)
hanging.start()
time.sleep(0.2)
print(pid, flush=True)
{exit_by}
"""
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert gone(int(finished.stdout))


def test_a_task_that_cannot_travel_is_refused_with_the_remedy(rollout_of):
    scorer = VerifierScorer()
    scorer.bind({"obedient": Unimportable()})
    with pytest.raises(ConfigError, match=r"could not start: .*no module of that name over here.*isolate: false"):
        scorer(rollout_of(["1"]))
    unpicklable = Obedient()
    unpicklable.handle = lambda: None
    scorer.bind({"obedient": unpicklable})
    with pytest.raises(ConfigError, match=r"cannot be pickled.*isolate: false"):
        scorer(rollout_of(["1"]))


def test_an_import_that_does_not_end_is_told_as_that(monkeypatch, rollout_of):
    monkeypatch.setattr("rlhf_lightning.scorers._workers._START_LIMIT", 0.01)
    scorer = VerifierScorer()
    scorer.bind({"obedient": Obedient()})
    with pytest.raises(ConfigError, match=r"was not ready after 0\.01 s: what it imports takes too long"):
        scorer(rollout_of(["1"]))


def test_an_unknown_task_names_the_nearest(scorer, rollout_of):
    with pytest.raises(ConfigError, match=r"no task 'obediant'\. Did you mean 'obedient'"):
        scorer(rollout_of(["1"], task="obediant"))


@pytest.mark.parametrize(("arguments", "said"), [({"time_limit": 0}, "time_limit"), ({"workers": 0}, "workers")])
def test_values_out_of_range_are_refused(arguments, said):
    with pytest.raises(ConfigError, match=said):
        VerifierScorer(**arguments)


def test_scores_that_are_no_finite_number_are_failures():
    assert score(Trusted(), Problem("p", "q"), "nan") == [(None, "ValueError: the verifier returned nan")]
    assert score(Trusted(), Problem("p", "q"), "text")[0][1].startswith("ValueError: could not convert")


@pytest.mark.parametrize("isolate", [True, False])
def test_a_verifier_that_says_it_cannot_work_ends_the_run(rollout_of, isolate):
    scorer = VerifierScorer(isolate=isolate)
    scorer.bind({"obedient": Obedient()})
    with pytest.raises(ConfigError, match="task obedient: math-verify is not installed"):
        scorer(rollout_of(["1", "misconfigured", "2"]))
    scores = scorer(rollout_of(["1", "nan", "boom"]))
    assert scores.failed.tolist() == [False, True, True] and scores.nonfinite.tolist() == [False, True, False]
    assert scores.reason == "scorer verifier: task obedient, problem p1: ValueError: the verifier returned nan"
    scorer.close()
