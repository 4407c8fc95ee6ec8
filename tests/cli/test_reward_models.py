"""The shipped tiny reward models, cut down: fit, what they leave behind, test, and a resume that changes nothing."""

import csv
import json

import pytest
from safetensors.torch import load_file

from rlhf_lightning.cli import main

SMALL = [
    "--model.batch_size=8", "--model.updates_per_epoch=2", "--data.held_out_fraction=0.2",
    "--data.sources", json.dumps([{"name": "demonstrations", "size": 200, "task": {
        "name": "chained_arithmetic", "held_out": 4, "train_size": 50}}]),
]  # fmt: skip
UNTIMED = ("time/", "speed/", "memory/")


def run(command, kind, name, *more):
    words = [command, "--config", f"tiny/{kind}.yaml", "--run.name", name, *SMALL, *more]
    assert main(words) == 0


def rows(path):
    with path.open() as file:
        return [{k: v for k, v in row.items() if not k.startswith(UNTIMED)} for row in csv.DictReader(file)]


@pytest.mark.parametrize("kind", ["orm", "prm"])
def test_fit_then_test(kind, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run("fit", kind, "whole", "--trainer.max_epochs=2")
    assert f"{'outcome' if kind == 'orm' else 'process'} supervision: 2 updates of 8 groups" in capsys.readouterr().out
    folder = tmp_path / "runs" / "whole"
    assert {"loss.png", "held_out_auroc.png"} <= {path.name for path in (folder / "plots").iterdir()}
    assert load_file(folder / "reward_model" / "model.safetensors")["score.weight"].shape[0] == 1
    (first, *_) = (folder / "samples.jsonl").read_text().splitlines()
    assert {"response", "score", "correct", "step_scores"} <= set(json.loads(first))
    run("test", kind, "whole", "--ckpt_path", "last")
    assert "held_out/auroc" in capsys.readouterr().out
    (measured,) = rows(folder / "test" / "metrics.csv")
    last = rows(folder / "metrics.csv")[-1]
    assert float(measured["held_out/auroc"]) == pytest.approx(float(last["held_out/auroc"]))
    assert ("held_out/first_error_f1" in measured) == (kind == "prm")


def test_resumed_is_uninterrupted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("fit", "prm", "whole", "--trainer.max_epochs=2")
    run("fit", "prm", "cut", "--trainer.max_epochs=1")
    run("fit", "prm", "cut", "--trainer.max_epochs=2", "--ckpt_path", "last")
    whole, cut = tmp_path / "runs" / "whole", tmp_path / "runs" / "cut"
    assert [row["loss/reward"] for row in rows(whole / "metrics.csv")] == [
        row["loss/reward"] for row in rows(cut / "metrics.csv")
    ]
    one, other = (load_file(path / "reward_model" / "model.safetensors") for path in (whole, cut))
    assert all(one[name].equal(other[name]) for name in one)
