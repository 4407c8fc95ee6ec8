"""vLLM beside our own sampler on SmolLM2-135M, and what handing weights over costs; each side in its own process."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from rlhf_lightning.process_settings import WAITING

HERE = Path(__file__).parent
VLLM_PYTHON = HERE.parents[1] / ".venv-vllm" / "bin" / "python"
"""Made by ``make vllm``; one interpreter runs all sides."""

SIDES = {
    "in_process float32": {"sampler": "in_process", "dtype": "float32"},
    "vllm float32": {"sampler": "vllm", "dtype": "float32"},
    "in_process bfloat16": {"sampler": "in_process", "dtype": "bfloat16"},
    "vllm bfloat16": {"sampler": "vllm", "dtype": "bfloat16"},
    "remote float32": {"sampler": "remote", "dtype": "float32"},
}
"""``remote`` is our own sampler behind a server of this machine: beside ``in_process``, it shows what HTTP costs."""


def run(sides: list[str], *, draws: int, repeats: int, console: Console, python: Path = VLLM_PYTHON) -> dict[str, Any]:
    """Alternates the sides; medians by side."""
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for side in sides * repeats:
        report = _child(side, draws, python)
        found[side].append(report)
        speeds = ", ".join(f"{speed:.0f}" for speed in report["tokens_per_s"])
        syncs = ", ".join(f"{seconds:.2f}" for seconds in report["syncs"])
        console.print(f"{side}: {speeds} tokens/s; hand-overs {syncs} s; first one {report['first_sync']:.1f} s")
    return {side: _medians(reports) for side, reports in found.items()}


def table(found: dict[str, Any]) -> Table:
    """Tokens a second and seconds a hand-over, beside our own sampler at the same type."""
    result = Table(title="128 responses of up to 64 tokens, SmolLM2-135M, and weights handed over (medians)")
    for name in ("side", "tokens/s", "/ in_process", "s a hand-over", "s a GB", "first one s"):
        result.add_column(name, justify="left" if name == "side" else "right")
    for side, own in found.items():
        ours = found.get(f"in_process {SIDES[side]['dtype']}")
        ratio = f"{own['tokens_per_s'] / ours['tokens_per_s']:.2f}×" if ours else "–"
        seconds = f"{own['sync']:.2f}", f"{own['sync'] / own['gb']:.2f}", f"{own['first_sync']:.1f}"
        result.add_row(side, f"{own['tokens_per_s']:.0f}", ratio, *seconds)
    return result


def _medians(reports: list[dict[str, Any]]) -> dict[str, float]:
    return {
        "tokens_per_s": median(speed for report in reports for speed in report["tokens_per_s"]),
        "sync": median(seconds for report in reports for seconds in report["syncs"]),
        "first_sync": median(report["first_sync"] for report in reports),
        "gb": reports[0]["gb"],
    }


def _child(side: str, draws: int, python: Path) -> dict[str, Any]:
    if not python.is_file():
        raise SystemExit(f"{python} is not there: make vllm smollm2")
    command = [str(python), "-m", "scale.draw", f"--draws={draws}"]
    command += [f"--{name}={value}" for name, value in SIDES[side].items()]
    env = os.environ | WAITING | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=HERE.parent, env=env, capture_output=True, text=True)
    results = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if len(results) != 1:
        raise SystemExit(f"{side}: {' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return dict(json.loads(results[0].removeprefix("RESULT ")))
