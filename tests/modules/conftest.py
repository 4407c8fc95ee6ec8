from typing import Any

import pytest
from lightning import Trainer


@pytest.fixture
def record():
    from lightning.pytorch.callbacks import Callback

    class Record(Callback):
        def __init__(self) -> None:
            self.rows: list[dict[str, float]] = []

        def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
            self.rows.append(dict(pl_module.rollout_metrics))

    return Record()
