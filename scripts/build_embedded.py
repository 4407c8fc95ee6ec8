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
from rlhf_lightning.models.tiny import TinyLlama, character_tokenizer

CONFIG = "tiny/sft.yaml"


def build(target: Path) -> None:
    """Trains in a folder of its own, and puts the weights in float16 where the package looks for them."""
    with tempfile.TemporaryDirectory() as root:
        status = main(["fit", "--config", CONFIG, "--run.root", root, "--run.name", "sft"])
        if status:
            raise SystemExit(status)
        checkpoint = torch.load(Path(root) / "sft" / "checkpoints" / "last.ckpt", weights_only=True)
    source = TinyLlama(**checkpoint["rlhf"]["architecture"])
    model = source.load()
    prefix = "policy."
    weights = {n.removeprefix(prefix): t for n, t in checkpoint["state_dict"].items() if n.startswith(prefix)}
    model.load_state_dict(weights)
    shutil.rmtree(target, ignore_errors=True)
    model.half().save_pretrained(target)
    character_tokenizer(source.context_length).save_pretrained(target)
    size = sum(file.stat().st_size for file in target.iterdir())
    print(json.dumps({"folder": str(target.name), "bytes": size, "parameters": model.num_parameters()}))


if __name__ == "__main__":
    build(EMBEDDED / "arithmetic")
