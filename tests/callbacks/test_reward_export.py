"""What a fit does at its end is tried at its start."""

from types import SimpleNamespace

import pytest
from lightning import LightningModule

from rlhf_lightning.callbacks import RewardModelExport
from rlhf_lightning.errors import RunFolderError


class Exporting(LightningModule):
    def export_reward_model(self, folder):
        raise AssertionError("not yet")


def test_a_folder_that_cannot_be_written_is_told_before_training(tmp_path):
    (tmp_path / "file").write_text("in the way")
    trainer = SimpleNamespace(is_global_zero=True)
    with pytest.raises(RunFolderError, match="cannot be written"):
        RewardModelExport(tmp_path / "file" / "run").setup(trainer, Exporting(), "fit")
    RewardModelExport(tmp_path / "run").setup(trainer, Exporting(), "fit")
    assert list((tmp_path / "run").iterdir()) == []
    RewardModelExport(tmp_path / "file" / "run").setup(trainer, Exporting(), "test")
    RewardModelExport(tmp_path / "file" / "run").setup(trainer, LightningModule(), "fit")
