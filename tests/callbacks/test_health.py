"""What a run's end says where much of it failed: the summary, the report, the exit code."""

import pandas as pd
import pytest

from rlhf_lightning.callbacks import RunHealth
from rlhf_lightning.callbacks.report import is_finished
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.runs import load_run

from .tiny_runs import __name__ as here
from .tiny_runs import rlhf_fit, tiny

SPOILED = {"reward_transforms": [{"class_path": f"{here}.Spoiled"}]}


def test_a_run_whose_updates_were_half_skipped_says_so_and_leaves_with_3(tmp_path, capsys):
    assert rlhf_fit(tmp_path, tiny(SPOILED)) == 3
    run = load_run(tmp_path / "runs" / "tiny")
    assert run.metrics["update/skipped"].tolist() == [0.5, 0.5]
    report = (run.path / "report.md").read_text()
    share = "50.0% of its updates were skipped, more than max_skipped (10.0%)."
    assert f"Ended with a warning after 2 rollouts: {share}" in report
    assert "ended with a warning after 2 rollouts" in capsys.readouterr().out and not is_finished(run.path)


def test_the_limits_are_settings(tmp_path):
    allowed = {"class_path": "rlhf_lightning.callbacks.RunHealth", "init_args": {"max_skipped": 0.5}}
    assert rlhf_fit(tmp_path, tiny(SPOILED, {"callbacks": [allowed]})) == 0
    report = (tmp_path / "runs" / "tiny" / "report.md").read_text()
    assert "Finished after 2 rollouts." in report and "50.00% of its updates were skipped" in report


def test_scores_that_are_not_finite_are_counted_to_the_end(tmp_path):
    assert rlhf_fit(tmp_path, tiny({"scorers": [{"class_path": f"{here}.Even", "init_args": {"odd": 1}}]})) == 3
    metrics = load_run(tmp_path / "runs" / "tiny").metrics
    assert metrics["score/failed"].tolist() == metrics["score/nonfinite"].tolist() == [1 / 8, 1 / 8]
    assert metrics["update/skipped"].tolist() == [0, 0]


def test_a_run_in_which_all_scores_fail_ends_at_once(tmp_path, capsys):
    assert rlhf_fit(tmp_path, tiny({"scorers": [{"class_path": f"{here}.Even", "init_args": {"odd": 8}}]})) == 2
    assert "every one of the first rollout's 8 scores failed" in (said := capsys.readouterr().err)
    assert "scorer even gave nan as the value" in said


def test_a_file_task_without_its_verifiers_package_is_refused_before_anything_is_made(tmp_path, capsys, monkeypatch):
    from rlhf_lightning.data.tasks import verifiers

    def missing(module):
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    monkeypatch.setattr(verifiers, "import_module", missing)
    verifiers.optional_package.cache_clear()
    (tmp_path / "sums.jsonl").write_text('{"question": "1+1=", "answer": "2"}\n')
    config = tiny({"scorers": None})
    config["data"]["init_args"]["task"] = {"name": "jsonl", "path": str(tmp_path / "sums.jsonl")}
    try:
        assert rlhf_fit(tmp_path, config) == 2
    finally:
        verifiers.optional_package.cache_clear()
    assert "math-verify is not installed; it comes with: pip install 'rlhf-lightning[tasks]'" in capsys.readouterr().err
    assert not (tmp_path / "runs" / "tiny" / "metrics.csv").exists()


def test_shares_are_means_over_all_rollouts_and_limits_are_shares():
    metrics = pd.DataFrame({"update/skipped": [0.0, 0.4, None], "score/failed": [0.0, 0.1, 0.0]})
    assert RunHealth(max_failed=0.01).warnings(metrics) == [
        "20.0% of its updates were skipped, more than max_skipped (10.0%)",
        "3.3% of its scores failed, more than max_failed (1.0%)",
    ]
    assert RunHealth(max_skipped=0.2).warnings(metrics) == [] == RunHealth().warnings(pd.DataFrame({"step": [1]}))
    with pytest.raises(ConfigError, match="max_failed must be a share in"):
        RunHealth(max_failed=5)
