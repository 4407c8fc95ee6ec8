"""A working folder with one good configuration, and the command run in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cli_fakes
import pytest

from rlhf_lightning.cli import main

CONFIG = """\
model:
  class_path: cli_fakes.FakeModule
  init_args:
    advantage: {name: group, eps: 1e-5}
    reward_transforms: [clip, {name: length_penalty, per_token: 0.5}]
    kl_loss: {estimator: k3, controller: {name: fixed, coefficient: 0.02}}
data:
  class_path: cli_fakes.FakeData
trainer:
  max_epochs: 2
  accelerator: cpu
  logger: false
  enable_progress_bar: false
  enable_model_summary: false
"""


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line after ``error: ``; the test fails if there is none or a traceback."""
        assert "Traceback" not in self.err
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.err
        assert self.code == 2
        return lines[0].removeprefix("error: ")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rlhf_lightning.callbacks.default_callbacks", cli_fakes.fake_callbacks)
    monkeypatch.setattr(cli_fakes.FakeModule, "made", [])
    (tmp_path / "fake.yaml").write_text(CONFIG)
    return tmp_path


@pytest.fixture
def rlhf(folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    def run(*words: str) -> Outcome:
        capsys.readouterr()
        try:
            code = main(words)
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture
def edited(folder: Path) -> Callable[..., str]:
    """Writes ``edited.yaml``: the good configuration with one text in place of another."""

    def edit(old: str, new: str) -> str:
        assert CONFIG.count(old) == 1
        (folder / "edited.yaml").write_text(CONFIG.replace(old, new))
        return "edited.yaml"

    return edit
