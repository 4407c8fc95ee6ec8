"""Each strategy on two processes of one thread beside one process of two threads: the same cores, the same work."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table

from rlhf_lightning.process_settings import HEAP, WAITING

HERE = Path(__file__).parent
STRATEGIES = ("ddp", "fsdp2", "fsdp1", "zero2", "zero3")
ALONE = "one process"
PHASES = ("rollout", "reference", "update")


def run(strategies: list[str], *, steps: int, repeats: int, folder: Path, console: Console) -> dict[str, Any]:
    """Alternates one process and each strategy; medians by side."""
    model = _model(folder)
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in (ALONE, *strategies)}
    for side in [ALONE, *strategies] * repeats:
        report = _ranks(side, steps, model)
        found[side].append(report)
        seconds = ", ".join(f"{step['wall']:.2f}" for step in report["steps"])
        console.print(f"{side}: {seconds} s; peak {report['peak_mb']:.0f} MB; weights' norm {report['norm']:.9f}")
    return {side: _medians(reports) for side, reports in found.items()}


def table(found: dict[str, Any]) -> Table:
    """Seconds a rollout, and how many times those of one process."""
    result = Table(title="A GRPO rollout of 64 responses and two updates, Llama 21 M (medians)")
    for name in ("side", "s", *PHASES, "/ one process", "peak MB a rank", "/ one process"):
        result.add_column(name, justify="left" if name == "side" else "right")
    alone = found[ALONE]
    for side, own in found.items():
        phases = (f"{own['phases'][name]:.2f}" for name in PHASES)
        ratios = (
            f"{own['wall'] / alone['wall']:.2f}×",
            f"{own['peak_mb']:.0f}",
            f"{own['peak_mb'] / alone['peak_mb']:.2f}×",
        )
        result.add_row(side, f"{own['wall']:.2f}", *phases, *ratios)
    return result


def _medians(reports: list[dict[str, Any]]) -> dict[str, Any]:
    steps = [step for report in reports for step in report["steps"]]
    return {
        "wall": median(step["wall"] for step in steps),
        "phases": {name: median(step.get(f"time/{name}", 0.0) for step in steps) for name in PHASES},
        "peak_mb": max(report["peak_mb"] for report in reports),
    }


def _model(folder: Path) -> Path:
    """A random Llama of 21 M parameters with the tokens of the tiny case."""
    from step.cases import VOCABULARY, tiny_llama
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    target = folder / "small"
    if not target.is_dir():
        config = LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=512, intermediate_size=1024, num_hidden_layers=8, num_attention_heads=8,
            num_key_value_heads=8, tie_word_embeddings=True, max_position_embeddings=1024, bos_token_id=None,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(target)
        AutoTokenizer.from_pretrained(tiny_llama(folder)).save_pretrained(target)
    return target


def _ranks(side: str, steps: int, model: Path) -> dict[str, Any]:
    world = 1 if side == ALONE else 2
    given = {"strategy": "auto" if side == ALONE else side, "world": world, "threads": 2 // world, "steps": steps}
    command = [sys.executable, "-m", "scale.rank", "--model", str(model)]
    command += [text for name, value in given.items() for text in (f"--{name}", str(value))]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with ExitStack() as stack:
        # Files: a pipe that is not read while another rank is waited for would stop its rank.
        outs = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(world)]
        processes = [
            subprocess.Popen(
                command, cwd=HERE.parent, env=os.environ | _place(rank, world, port), stdout=out,
                stderr=subprocess.STDOUT, text=True,
            )
            for rank, out in enumerate(outs)
        ]  # fmt: skip
        for process in processes:
            process.wait()
        said = [_text(out) for out in outs]
    results = [line for out in said for line in out.splitlines() if line.startswith("RESULT ")]
    if len(results) != 1:
        raise SystemExit(f"{side}: {' '.join(command)} failed:\n" + "\n".join(out[-3000:] for out in said))
    return dict(json.loads(results[0].removeprefix("RESULT ")))


def _text(file: TextIO) -> str:
    file.seek(0)
    return file.read()


def _place(rank: int, world: int, port: int) -> dict[str, str]:
    own = {"OMP_NUM_THREADS": str(2 // world), "HF_HUB_OFFLINE": "1"} | WAITING | HEAP
    if world == 1:
        return own
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "GROUP_RANK": 0}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "benchmark"}
    return own | {name: str(value) for name, value in place.items()} | meeting
