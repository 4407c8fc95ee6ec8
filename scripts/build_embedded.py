"""Rebuilds the policy that ships inside the package: `rlhf fit --config tiny/sft.yaml`, then a half-precision folder.

The seed stands in `configs/tiny/sft.yaml`. Run it from anywhere: `python scripts/build_embedded.py`.
"""

import json
import shutil
import tempfile
from pathlib import Path

import torch

from rlhf_lightning.cli import main
from rlhf_lightning.models.sources import EMBEDDED
from rlhf_lightning.models.tiny import TinyLlama
from rlhf_lightning.runs import load_run

CONFIG = "tiny/sft.yaml"
PREFIX = "policy."


def build(target: Path) -> None:
    """Trains in a folder of its own, and puts the weights in float16 where the package looks for them."""
    with tempfile.TemporaryDirectory() as root:
        status = main(["fit", "--config", CONFIG, "--run.root", root, "--run.name", "sft"])
        if status:
            raise SystemExit(status)
        run = Path(root) / "sft"
        source = TinyLlama(**load_run(run).config["model"]["init_args"]["policy"]["init_args"])
        trained = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    model = source.load()
    model.load_state_dict({n.removeprefix(PREFIX): w for n, w in trained.items() if n.startswith(PREFIX)})
    shutil.rmtree(target, ignore_errors=True)
    model.half().save_pretrained(target)
    source.tokenizer().save_pretrained(target)
    size = sum(file.stat().st_size for file in target.iterdir())
    print(json.dumps({"folder": target.name, "bytes": size, "parameters": model.num_parameters()}))


if __name__ == "__main__":
    build(EMBEDDED / "arithmetic")
