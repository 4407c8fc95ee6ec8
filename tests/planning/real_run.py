"""A plan and then the real ``rlhf fit``, in a process of its own: what was foretold, and the most memory that it held.

``python -m tests.planning.real_run WORDS...`` takes the words of ``rlhf fit``; its last line is JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from rlhf_lightning.process_settings import HEAP, WAITING

ROOT = Path(__file__).parents[2]
TIMEOUT = 300


def write_model(folder: Path, **sizes: Any) -> Path:
    """A Llama of random weights over characters, as a Hugging Face folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from rlhf_lightning.models.tiny import character_tokenizer

    context = sizes.setdefault("max_position_embeddings", 1024)
    torch.manual_seed(0)
    config = LlamaConfig(pad_token_id=0, eos_token_id=1, bos_token_id=None, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    character_tokenizer(context).save_pretrained(folder)
    return folder


def fit(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What was planned, and what ``rlhf fit`` held: ``planned`` and ``held`` in bytes, ``phases`` of the plan.

    Raises:
        AssertionError: If it failed, with what it said.
    """
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(config))
    own = WAITING | HEAP | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    command = [sys.executable, "-m", "tests.planning.real_run", "--config", str(file), f"--run.root={folder / 'runs'}"]
    done = subprocess.run(command, cwd=folder, env=os.environ | own, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-2000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(words: list[str]) -> int:
    from rlhf_lightning.cli import main as rlhf
    from rlhf_lightning.cli.commands.plan import _parser, make_plan
    from rlhf_lightning.plugins import load_builtins
    from rlhf_lightning.process_memory import peak_resident

    load_builtins()
    plan = make_plan(*_parser().parse_known_args(words))
    code = rlhf(["fit", *words])
    held = peak_resident()
    phases = {phase.name: {name: round(size / 2**20) for name, size in phase.parts.items()} for phase in plan.phases}
    print(json.dumps({"planned": plan.peak.total, "held": held, "phase": plan.peak.name, "phases": phases}))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
