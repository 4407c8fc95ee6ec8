"""A real ``rlhf fit`` in a process of its own, and the most memory that it held, by phase.

``python -m tests.planning.real_run FOLDER WORDS...`` runs ``rlhf fit WORDS...`` and prints JSON on its last line.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
TIMEOUT = 240


def write_model(folder: Path, **sizes: Any) -> Path:
    """A Llama of random weights over characters, as a Hugging Face folder; nothing if it is there already."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from rlhf_lightning.models.tiny import character_tokenizer

    if folder.is_dir():
        return folder
    context = sizes.setdefault("max_position_embeddings", 1024)
    torch.manual_seed(0)
    config = LlamaConfig(pad_token_id=0, eos_token_id=1, bos_token_id=None, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    character_tokenizer(context).save_pretrained(folder)
    return folder


def fit(words: list[str], folder: Path) -> dict[str, Any]:
    """What ``rlhf fit`` held, in bytes: ``peak``, and of each of its ``phases`` in order.

    Raises:
        AssertionError: If it failed, with what it said.
    """
    own = {"OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    command = [sys.executable, "-m", "tests.planning.real_run", *words, f"--run.root={folder}"]
    done = subprocess.run(command, cwd=folder, env=os.environ | own, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-2000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


class _Watch(threading.Thread):
    """Looks at the resident memory every few milliseconds, and notes the most of each phase."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seen: list[tuple[str, int]] = [("start", 0)]

    def run(self) -> None:
        page = os.sysconf("SC_PAGE_SIZE")
        while True:
            held = int(Path("/proc/self/statm").read_text().split()[1]) * page
            phase, most = self.seen[-1]
            self.seen[-1] = phase, max(held, most)
            time.sleep(0.002)

    def on_phase_start(self, phase: Any) -> None:
        self.seen.append((phase.name, 0))

    def on_phase_advance(self, phase: Any) -> None:
        """Nothing to see."""

    def on_phase_stop(self, phase: Any) -> None:
        self.seen.append((f"after {phase.name}", 0))


def main(words: list[str]) -> None:
    from rlhf_lightning import events
    from rlhf_lightning.cli import main as rlhf

    watch = _Watch()
    made = events.Events.__init__

    def watched(self: Any, *args: Any) -> None:
        made(self, *args)
        self.subscribe(watch)

    events.Events.__init__ = watched  # type: ignore[method-assign]
    watch.start()
    code = rlhf(["fit", *words])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"code": code, "peak": peak, "phases": watch.seen}))
    sys.exit(code)


if __name__ == "__main__":
    main(sys.argv[1:])
