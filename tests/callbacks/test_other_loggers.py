"""Loggers beside the run's own files: what each of them got, read back with its own tools, without a network."""

import json
import struct
from pathlib import Path

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlhf_lightning.callbacks import default_loggers
from rlhf_lightning.runs import load_run

from .tiny_runs import rlhf_fit, tiny

LIGHTNING = "lightning.pytorch.loggers"
OWN_FILES = {"metrics.csv", "samples.jsonl", "report.md", "plots", "config.yaml", "checkpoints"}
METRIC = "reward/raw_mean"


def logged(folder: Path, loggers, **trainer) -> list[float]:
    """The rewards of a run's own table; the other loggers' are to be the same."""
    assert rlhf_fit(folder, tiny(trainer={"logger": loggers, **trainer})) == 0
    run = load_run(folder / "runs" / "tiny")
    assert {path.name for path in run.path.iterdir()} >= OWN_FILES
    assert {path.name for path in (run.path / "plots").iterdir()} == {"reward.png", "length.png"}
    assert "Finished after 2 rollouts" in (run.path / "report.md").read_text()
    return run.metrics[METRIC].tolist()


@pytest.mark.parametrize("loggers", [False, "one", "two"])
def test_the_runs_own_files_are_written_whatever_the_loggers(tmp_path, loggers):
    csv = {"class_path": f"{LIGHTNING}.CSVLogger", "init_args": {"save_dir": str(tmp_path / "csv")}}
    given = {"one": csv, "two": [csv, {**csv, "init_args": {"save_dir": str(tmp_path / "other")}}]}.get(
        loggers, loggers
    )
    logged(tmp_path, given, max_epochs=2)
    assert not (tmp_path / "runs" / "tiny" / "tensorboard").exists()
    assert len(list(tmp_path.glob("csv/*/*/metrics.csv"))) == (loggers in ("one", "two"))
    assert len(list(tmp_path.glob("other/*/*/metrics.csv"))) == (loggers == "two")


def test_the_table_is_not_kept_twice(tmp_path):
    once = default_loggers(tmp_path, True)
    assert [type(x).__name__ for x in once] == ["ResumableCSVLogger", "ResumableTensorBoardLogger"]
    assert [type(x) for x in default_loggers(tmp_path, once)] == [type(x) for x in default_loggers(tmp_path)]


def settings_of(folder: Path) -> dict:
    return yaml.safe_load((folder / "runs" / "tiny" / "config.yaml").read_text())


def test_tensorboard(tmp_path):
    rewards = logged(tmp_path, None)
    folder = tmp_path / "runs" / "tiny" / "tensorboard"
    shown = EventAccumulator(str(folder), size_guidance={"images": 0, "tensors": 0}).Reload()
    assert [event.value for event in shown.Scalars(METRIC)] == pytest.approx(rewards)
    assert sorted(shown.Tags()["images"]) == ["plots/length", "plots/reward"]
    texts = [event.tensor_proto.string_val[0].decode() for event in shown.Tensors("samples/text_summary")]
    assert [text.splitlines()[0] for text in texts] == ["# Samples of rollout 0", "# Samples of rollout 1"]
    assert "| best |" in texts[0] and "| worst |" in texts[0]
    assert yaml.safe_load((folder / "hparams.yaml").read_text()) == settings_of(tmp_path)


@pytest.mark.slow
def test_mlflow(tmp_path):
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    settings = {"experiment_name": "e", "tracking_uri": uri, "artifact_location": str(tmp_path / "artifacts")}
    rewards = logged(tmp_path, {"class_path": f"{LIGHTNING}.MLFlowLogger", "init_args": settings})
    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("e").experiment_id])
    assert [entry.value for entry in client.get_metric_history(run.info.run_id, METRIC)] == rewards
    assert run.data.params["model/init_args/prompts_per_rollout"] == "4" and run.info.status == "FINISHED"
    folder = tmp_path / "artifacts" / run.info.run_id / "artifacts"
    assert {path.name for path in folder.rglob("*.*")} == {
        "reward.png", "length.png", "rollout-000000.md", "rollout-000001.md",
    }  # fmt: skip


@pytest.mark.slow
def test_trackio(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    quiet = {"auto_log_cpu": False, "auto_log_gpu": False}
    settings = {"project": "p", "name": "n", "settings": quiet}
    rewards = logged(tmp_path, {"class_path": "TrackioLogger", "init_args": settings})
    rows = SQLiteStorage.get_logs("p", "n")
    assert [row[METRIC] for row in rows if METRIC in row] == rewards
    tables = [row["samples"]["_value"] for row in rows if "samples" in row]
    assert [len(table) for table in tables] == [6, 6] and {row["kind"] for row in tables[0]} == {
        "best",
        "median",
        "worst",
    }
    assert {name for row in rows for name in row if name.startswith("plots/")} == {"plots/reward", "plots/length"}
    assert SQLiteStorage.get_run_config("p", "n")["model"]["init_args"]["prompts_per_rollout"] == 4


def wandb_records(file: Path):
    """The records of an offline run, as protocol buffers: a header of 7 bytes, then blocks of LevelDB's log format."""
    from wandb.proto import wandb_internal_pb2 as proto

    data, place, parts = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield proto.Record.FromString(parts)
            parts = b""


@pytest.mark.slow
def test_wandb(tmp_path):
    wandb = pytest.importorskip("wandb")
    settings = {"offline": True, "save_dir": str(tmp_path), "project": "p"}
    rewards = logged(tmp_path, {"class_path": f"{LIGHTNING}.WandbLogger", "init_args": settings})
    wandb.finish()  # as when the process ends
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    records = list(wandb_records(file))
    history = [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]
    assert [row[METRIC] for row in history if METRIC in row] == pytest.approx(rewards)
    assert [row["samples/_type"] for row in history if "samples/_type" in row] == ["table-file"] * 2
    media = file.parent / "files" / "media"
    (first, _) = sorted((media / "table").glob("samples_*.table.json"), key=lambda path: path.stat().st_mtime_ns)
    table = json.loads(first.read_text())
    assert table["columns"][:2] == ["kind", "even"] and len(table["data"]) == 6
    assert {path.name.split("_")[0] for path in (media / "images" / "plots").iterdir()} == {"reward", "length"}
    updates = [item for record in records for item in (*record.config.update, *record.run.config.update)]
    model = [json.loads(item.value_json) for item in updates if item.key == "model"]
    assert model and model[-1]["init_args"]["prompts_per_rollout"] == 4
