"""Our PPO step beside that of TRL 1.12's experimental ``PPOTrainer``, and beside our GRPO step.

    python benchmarks/ppo_step.py --cases tiny --repeats 2

Policy, value, reference and reward models of one size; 32 responses of exactly 64 new tokens; four passes over each
rollout, all responses in one mini-batch. TRL draws one response a prompt, so it has 32 prompts; ours is run with 8
prompts of 4 responses and with the same 32 prompts. PPO beside GRPO: 8 prompts × 4, one pass, a trivial score, a KL
term to a reference on both. TRL 1.12 is put into ``.parity/trl-1.12.0`` if it is not there. Our values are computed in
the phase ``reference``. See ``benchmarks/README.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from ppo.work import PHASES, SIDES
from rich.console import Console
from rich.table import Table
from step.cases import CASES
from step.environment import add_option, environment

HERE = Path(__file__).parent
PEER = "1.12.0"
PEER_FOLDER = HERE.parent / ".parity" / f"trl-{PEER}"
ASKED = {("trl", "ours"): "at least 4×", ("trl", "ours-1"): "at least 4×", ("ppo", "grpo"): "at most 1.6×"}
"""Ratios of seconds that are printed, and what is asked of them."""


def main() -> None:
    """Runs the cases and sides asked for and prints the tables."""
    options = _parser().parse_args()
    console = Console(width=None if sys.stdout.isatty() else 130)
    if "trl" in options.sides:
        fetch_peer(console)
    found = {}
    with tempfile.TemporaryDirectory() as models:
        for case in options.cases:
            found[case] = measure(case, options, Path(models), console)
    for case, figures in found.items():
        console.print(comparison(case, figures))
        console.print(phases(case, figures))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=["tiny", "smol45"])
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), default=list(SIDES))
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of all models' weights")
    parser.add_argument("--steps", type=int, default=3, help="counted rollouts a process, after one to warm up")
    parser.add_argument("--repeats", type=int, default=2, help="processes a side")
    parser.add_argument("--threads", type=int, default=2)
    add_option(parser)
    parser.add_argument("--json", type=Path, help="file for all figures")
    return parser


def fetch_peer(console: Console) -> None:
    """Puts the peer's wheel into a folder of its own, unless it is there: the installed version has no PPO."""
    if (PEER_FOLDER / "trl").is_dir():
        return
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(PEER_FOLDER)]
    console.print(f"TRL {PEER} into {PEER_FOLDER}", highlight=False)
    subprocess.run([*command, f"trl=={PEER}"], check=True)


def measure(case: str, options: argparse.Namespace, models: Path, console: Console) -> dict[str, dict[str, Any]]:
    """Runs all sides in turn, as often as asked; each one's medians."""
    _child("prepare", case, options, models)
    reports: dict[str, list[dict[str, Any]]] = {side: [] for side in options.sides}
    for side in [*options.sides] * options.repeats:
        report = _child(side, case, options, models)
        reports[side].append(report)
        steps = ", ".join(f"{step['wall']:.2f} s ({step['cpu']:.2f} CPU-s)" for step in report["steps"])
        console.print(f"{case} {side}: {steps}; peak {report['peak_mb']:.0f} MB", highlight=False)
    return {side: figures(own) for side, own in reports.items()}


def figures(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over all counted steps of one side."""
    steps = [step for report in reports for step in report["steps"]]
    for step in steps:
        covered = {kind: sum(phase[kind] for phase in step["phases"].values()) for kind in ("wall", "cpu")}
        step["phases"]["rest"] = {kind: step[kind] - value for kind, value in covered.items()}
    none = {"wall": 0.0, "cpu": 0.0}
    return {
        **{kind: median(step[kind] for step in steps) for kind in ("wall", "cpu", "others")},
        "peak_mb": max(report["peak_mb"] for report in reports),
        "steps": len(steps),
        "phases": {
            name: {kind: median(step["phases"].get(name, none)[kind] for step in steps) for kind in none}
            for name in PHASES
        },
    }


def comparison(case: str, found: dict[str, dict[str, Any]]) -> Table:
    """Seconds, memory and the ratios that are asked for."""
    table = Table(title=f"A PPO step, {CASES[case].title}: 32 responses × 64 new tokens (medians)")
    for name in ("side", "passes", "s/step", "CPU-s", "peak MB", "others", "steps"):
        table.add_column(name, justify="left" if name == "side" else "right")
    for side, own in found.items():
        numbers = (f"{own['wall']:.2f}", f"{own['cpu']:.2f}", f"{own['peak_mb']:.0f}", f"{own['others']:.2f}")
        table.add_row(SIDES[side].title, str(SIDES[side].epochs), *numbers, str(own["steps"]))
    table.add_section()
    for (over, under), asked in ASKED.items():
        if over in found and under in found:
            ratios = [f"{found[over][kind] / found[under][kind]:.2f}×" for kind in ("wall", "cpu", "peak_mb")]
            table.add_row(f"[bold]{SIDES[over].title} / {SIDES[under].title}", "", *ratios, asked, "")
    return table


def phases(case: str, found: dict[str, dict[str, Any]]) -> Table:
    """Where the time goes: CPU-seconds and seconds by phase."""
    table = Table(title=f"{CASES[case].title}: seconds (CPU-seconds) by phase")
    table.add_column("phase")
    for side in found:
        table.add_column(SIDES[side].title, justify="right")
    for name in PHASES:
        cells = (own["phases"][name] for own in found.values())
        table.add_row(name, *(f"{cell['wall']:.3f} ({cell['cpu']:.3f})" for cell in cells))
    return table


def _child(side: str, case: str, options: argparse.Namespace, models: Path) -> dict[str, Any]:
    given = {"side": side, "case": case, "dtype": options.dtype, "steps": options.steps, "threads": options.threads}
    command = [sys.executable, "-m", "ppo.child"]
    command += [text for name, value in (given | {"models": models}).items() for text in (f"--{name}", str(value))]
    environment = _environment(options, peer=side == "trl")
    done = subprocess.run(command, cwd=HERE, env=environment, capture_output=True, text=True)
    results = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not results:
        raise SystemExit(f"{' '.join(command)} ended with code {done.returncode}:\n{done.stderr[-4000:]}")
    return dict(json.loads(results[-1].removeprefix("RESULT ")))


def _environment(options: argparse.Namespace, *, peer: bool) -> dict[str, str]:
    """That of both sides; the peer's folder stands before the installed packages."""
    found = environment(options, ours=not peer) | {"TRL_EXPERIMENTAL_SILENCE": "1"}
    if peer:
        found["PYTHONPATH"] = os.pathsep.join([str(PEER_FOLDER), *filter(None, [found.get("PYTHONPATH")])])
    return found


if __name__ == "__main__":
    main()
