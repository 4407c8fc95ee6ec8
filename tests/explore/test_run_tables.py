import math

import pytest

from rlhf_lightning.errors import RunFolderError
from rlhf_lightning.runs import find_runs, frontier

from .hand_made import METRICS, SAMPLES, make_run, sample, without


def test_tokens_have_a_row_each_and_join_their_sample(tmp_path):
    run = make_run(tmp_path)
    tokens = run.tokens
    assert tokens["rollout"].tolist() == [0, 0, 0, 1, 1]
    assert tokens["sample"].tolist() == [0, 0, 0, 2, 2]  # sample 1 was logged without its tokens
    assert tokens["position"].tolist() == [0, 1, 2, 0, 1]
    assert tokens["token"].tolist() == ["2", "\n", "", "<b>", "&\"'"]
    assert tokens["value"].tolist() == [0.5, 0.25, -0.5, 0.0, 1.0]
    assert tokens["advantage"].tolist() == [1.0, 0.0, -1.0, 2.0, 2.0]
    joined = tokens.join(run.samples["response"], on="sample")
    assert joined["response"].tolist() == ["2\n"] * 3 + ["<b>&\"'"] * 2


def test_log_ratio_and_kl_are_of_the_policy_that_sampled_to_the_reference(tmp_path):
    tokens = make_run(tmp_path).tokens
    ratio, k3 = tokens["log_ratio"].tolist(), tokens["kl_k3"].tolist()
    assert [*ratio[:2], *ratio[3:]] == [0.5, 0.0, -1.0, 0.0]
    assert tokens["kl_k1"].equals(tokens["log_ratio"])
    # r − 1 − log r with r = e^(ref − old): e^-0.5 − 1 + 0.5 = 0.1065306597; e^1 − 1 − 1 = 0.7182818285
    assert [*k3[:2], *k3[3:]] == pytest.approx([0.1065306597, 0.0, 0.7182818285, 0.0])
    assert math.isnan(ratio[2]) and math.isnan(k3[2])  # null in the file: it was not finite


def test_what_a_run_did_not_have_is_no_column(tmp_path):
    columns = set(make_run(tmp_path, samples=without("ref_logprobs", "values")).tokens.columns)
    assert columns == {"rollout", "sample", "position", "token", "logprob", "advantage"}


def test_tokens_that_were_not_logged_are_asked_for(tmp_path):
    run = make_run(tmp_path, samples=[sample(0, "a", 1.0)])
    with pytest.raises(RunFolderError, match=r"logged no tokens\. .*SampleLog, init_args: \{per_token: true\}"):
        _ = run.tokens


def test_lists_of_unequal_length_are_named(tmp_path):
    run = make_run(tmp_path, samples=[{**SAMPLES[0], "values": [0.5]}])
    with pytest.raises(RunFolderError, match="sample 0: values has 1 entries for 3 tokens"):
        _ = run.tokens


def test_the_frontier_has_a_row_a_rollout_that_has_both(tmp_path):
    first = make_run(tmp_path, "first")
    second = make_run(tmp_path, "second", metrics="rollout,kl/ref_k1_per_sequence,reward/raw_mean\n3,2.0,0.875\n")
    table = frontier([first, second])
    assert table["run"].tolist() == ["first", "first", "second"]
    assert table["rollout"].tolist() == [0, 1, 3]
    assert table["kl"].tolist() == [0.0, 0.5, 2.0]
    assert table["reward"].tolist() == [0.25, 0.5, 0.875]
    assert frontier([first], reward="value/mean")["reward"].tolist() == [0.5, 0.25]
    assert frontier([]).columns.tolist() == ["run", "rollout", "kl", "reward"]


def test_the_frontier_needs_a_reference(tmp_path):
    run = make_run(tmp_path, metrics="rollout,reward/raw_mean\n0,0.5\n")
    with pytest.raises(RunFolderError, match=r"it had no reference\. Give it a KL term"):
        frontier([run])


def test_runs_are_found_at_any_depth(tmp_path):
    for name in ("b", "a/seed1", "a/seed0"):
        make_run(tmp_path, name, metrics=METRICS)
    (tmp_path / "not a run").mkdir()
    found = [run.path.relative_to(tmp_path).as_posix() for run in find_runs(tmp_path)]
    assert found == ["a/seed0", "a/seed1", "b"]


@pytest.mark.parametrize(("name", "problem"), [("empty", "holds no run"), ("absent", "does not exist")])
def test_a_folder_without_runs_is_said_to_be_one(tmp_path, name, problem):
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunFolderError, match=rf"folder .*{name} {problem}"):
        find_runs(tmp_path / name)
