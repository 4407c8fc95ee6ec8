"""A run's trained policy as a model source."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from rlhf_lightning.cli.document import Document
from rlhf_lightning.cli.expand import Expander
from rlhf_lightning.errors import ConfigError, RunFolderError
from rlhf_lightning.models.lora import LoRA
from rlhf_lightning.models.prepare import trainable
from rlhf_lightning.models.run_policy import RunPolicy
from rlhf_lightning.models.tiny import TinyLlama
from rlhf_lightning.plugins import load_builtins

SOURCE = {"class_path": "rlhf_lightning.models.tiny.TinyLlama", "init_args": {"hidden": 16, "layers": 1, "heads": 2}}
TOKENS = torch.tensor([[1, 5, 3, 8]])


def small(seed: int = 0) -> torch.nn.Module:
    return TinyLlama(hidden=16, layers=1, heads=2, seed=seed).load()


def write_run(folder: Path, model: torch.nn.Module, lora: dict | None = None) -> Path:
    (folder / "checkpoints").mkdir(parents=True)
    config = {"model": {"class_path": "x.Y", "init_args": {"policy": SOURCE, "lora": lora}}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    state = {f"policy.{name}": value for name, value in model.state_dict().items()}
    torch.save({"state_dict": state}, folder / "checkpoints" / "epoch=2.ckpt")
    return folder


@pytest.mark.parametrize("inside", ["", "checkpoints/epoch=2.ckpt"])
def test_it_has_the_checkpoints_weights(tmp_path: Path, inside: str):
    trained = small(seed=7)
    source = RunPolicy(str(write_run(tmp_path / "a", trained) / inside))
    torch.testing.assert_close(source.load()(TOKENS).logits, trained(TOKENS).logits)
    assert source.config().hidden_size == 16
    assert source.tokenizer()("1+2")["input_ids"] == TinyLlama().tokenizer()("1+2")["input_ids"]


def test_adapters_are_merged(tmp_path: Path):
    lora = LoRA(rank=2)
    trained = trainable(small(), lora=lora, gradient_checkpointing=False)
    for name, p in trained.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, generator=torch.Generator().manual_seed(1))
    run = write_run(
        tmp_path / "a", trained, {"class_path": "rlhf_lightning.models.lora.LoRA", "init_args": {"rank": 2}}
    )
    merged = RunPolicy(str(run)).load()
    assert not any("lora" in name for name, _ in merged.named_parameters())
    torch.testing.assert_close(merged(TOKENS).logits, trained(TOKENS).logits, atol=1e-5, rtol=1e-5)
    assert (merged(TOKENS).logits - small()(TOKENS).logits).abs().max() > 1e-3


def test_its_identity_changes_with_the_weights(tmp_path: Path):
    first, second = (RunPolicy(str(write_run(tmp_path / str(seed), small(seed)))) for seed in (1, 2))
    assert first.identity() != second.identity()
    assert first.identity() == RunPolicy(str(tmp_path / "1")).identity()


def test_a_path_stands_for_it(tmp_path: Path):
    load_builtins()
    run = write_run(tmp_path / "a", small())
    expand = Expander(Document()).plugin
    assert expand(str(run), "model_source", ("policy",))["class_path"].endswith("run_policy.RunPolicy")
    assert expand(str(tmp_path / "b"), "model_source", ("policy",))["class_path"].endswith("sources.Folder")


@pytest.mark.parametrize(
    ("path", "error", "expected"),
    [
        ("aa", RunFolderError, "did you mean"),
        ("a/checkpoints/no.ckpt", RunFolderError, "does not exist"),
        ("c", RunFolderError, "has no checkpoint yet"),
        ("d", ConfigError, "its model has no policy or model"),
    ],
)
def test_what_is_no_run_is_refused(tmp_path: Path, path: str, error: type[Exception], expected: str):
    write_run(tmp_path / "a", small())
    (write_run(tmp_path / "c", small()) / "checkpoints" / "epoch=2.ckpt").unlink()
    (write_run(tmp_path / "d", small()) / "config.yaml").write_text("model: {class_path: x.Y}\n")
    with pytest.raises(error, match=expected):
        RunPolicy(str(tmp_path / path))
