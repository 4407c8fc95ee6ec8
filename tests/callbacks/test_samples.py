import json
import math
from types import SimpleNamespace

import pytest
import torch

from rlhf_lightning.callbacks import SampleLog
from rlhf_lightning.callbacks.samples import as_line, evenly, rewind_samples
from rlhf_lightning.errors import ConfigError, RunFolderError
from rlhf_lightning.runs import read_jsonl

from .fake_rollouts import FakeRollouts, fit


def test_spread_takes_even_distances_from_the_first():
    assert list(evenly(range(16), 4)) == [0, 4, 8, 12]
    assert list(evenly(range(10), 4)) == [0, 2, 5, 7]
    assert list(evenly(range(3), 4)) == [0, 1, 2]


@pytest.mark.parametrize(("per_rollout", "names"), [(2, ["r0.0", "r0.8"]), ("all", [f"r0.{i}" for i in range(16)])])
def test_a_fit_writes_so_many_lines_a_rollout(run_dir, per_rollout, names):
    fit(run_dir, FakeRollouts(), 2, callbacks=[SampleLog(per_rollout=per_rollout)], enable_progress_bar=False)
    lines = read_jsonl(run_dir / "samples.jsonl")
    assert [line["response"] for line in lines if line["rollout"] == 0] == names
    assert len(lines) == 2 * len(names)


def test_what_json_does_not_know_is_written_so_that_any_reader_takes_it():
    line = as_line({"reward": math.nan, "scores": {"v": -math.inf}, "t": torch.tensor([1, 2]), "text": "a\nb\ud800中"})
    written = line.encode("utf-8", errors="backslashreplace").decode()
    assert written.count("\n") == 1 and "中" in written
    assert json.loads(written) == {"reward": None, "scores": {"v": None}, "t": [1, 2], "text": "a\nb\ud800中"}


def test_rewind_drops_later_rollouts_and_a_torn_line(tmp_path):
    path = tmp_path / "samples.jsonl"
    path.write_text('{"rollout": 0, "r": "中"}\n{"rollout": 1}\n{"rollout": 2}\n{"rollout": 1, "resp')
    with pytest.warns(UserWarning, match="left out the last line"):
        rewind_samples(path, 1)
    assert path.read_text() == '{"rollout": 0, "r": "中"}\n'
    rewind_samples(tmp_path / "absent.jsonl", 1)
    assert not (tmp_path / "absent.jsonl").exists()


def test_rewind_refuses_a_broken_line(tmp_path):
    path = tmp_path / "samples.jsonl"
    path.write_text('{"rollout": 0}\nnonsense\n')
    with pytest.raises(RunFolderError, match="line 2: not JSON"):
        rewind_samples(path, 1)


def test_per_rollout_must_be_positive():
    with pytest.raises(ConfigError, match="per_rollout must be at least 1"):
        SampleLog(per_rollout=0)


class Watched:
    """As much of a trainer and an experience as the callback looks at: 16 responses, of which it is to keep some."""

    is_global_zero = True


def test_tokens_are_kept_of_those_responses_alone_that_are_written(run_dir, monkeypatch):
    asked = []

    def details(experience, sequence, tokenizer):
        asked.append((sequence, tokenizer))
        return {"tokens": [f"t{sequence}"]}

    monkeypatch.setattr("rlhf_lightning.callbacks.samples.token_details", details)
    module = FakeRollouts()
    module.tokenizer = "the tokenizer"
    experience = SimpleNamespace(rollout=SimpleNamespace(texts=("",) * 16))
    log = SampleLog(run_dir, per_rollout=2, per_token=True)
    log.on_experience(Watched(), module, experience)
    assert asked == [(0, "the tokenizer"), (8, "the tokenizer")]
    module.rollout_samples = [{"response": f"r{i}"} for i in range(16)]
    log.on_train_epoch_end(Watched(), module)
    assert read_jsonl(run_dir / "samples.jsonl") == [
        {"rollout": 0, "response": "r0", "tokens": ["t0"]},
        {"rollout": 0, "response": "r8", "tokens": ["t8"]},
    ]
    module.rollout_index = 1
    SampleLog(run_dir, per_rollout=2).on_experience(Watched(), module, experience)
    assert len(asked) == 2  # not asked for
