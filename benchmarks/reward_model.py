"""Our reward-model update beside that of TRL's ``RewardTrainer``: the same pairs, runs alternated, in own processes.

    python benchmarks/reward_model.py --dtype float32

SmolLM2-135M, pairs of a 128-token prompt with two 128-token answers, 8 pairs an update in one batch, no gradient
checkpointing, the preference loss alone. Prints pairs a second, CPU-seconds, peak memory and the ratios.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

from pairs.data import PAIRS
from rich.console import Console
from rich.table import Table
from step.environment import add_option, environment

HERE = Path(__file__).parent
ASKED = 2.0


def main() -> None:
    """Runs both sides in turn and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of both sides' weights")
    parser.add_argument("--steps", type=int, default=2, help="counted updates a process, after one to warm up")
    parser.add_argument("--repeats", type=int, default=2, help="processes a side")
    parser.add_argument("--threads", type=int, default=2)
    add_option(parser)
    parser.add_argument("--json", type=Path, help="file for all figures")
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 120)
    reports = [_child(side, options, console) for side in ["ours", "trl"] * options.repeats]
    figures = {side: _figures([r for r in reports if r["side"] == side]) for side in ("ours", "trl")}
    console.print(_table(figures, options.dtype))
    if options.json:
        options.json.write_text(json.dumps({"figures": figures, "reports": reports}, indent=1))


def _child(side: str, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    command = [sys.executable, "-m", "pairs.child", "--side", side, "--dtype", options.dtype]
    command += ["--steps", str(options.steps), "--threads", str(options.threads)]
    started = environment(options, ours=side == "ours")
    done = subprocess.run(command, cwd=HERE, env=started, capture_output=True, text=True)
    results = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not results:
        raise SystemExit(f"{' '.join(command)} ended with code {done.returncode}:\n{done.stderr[-4000:]}")
    report = dict(json.loads(results[-1].removeprefix("RESULT ")))
    took = ", ".join(f"{step['wall']:.2f} s ({step['cpu']:.2f} CPU-s)" for step in report["steps"])
    console.print(f"{side}: {took}; peak {report['peak_mb']:.0f} MB", highlight=False)
    return report


def _figures(reports: list[dict[str, Any]]) -> dict[str, float]:
    steps = [step for report in reports for step in report["steps"]]
    kinds = {kind: median(step[kind] for step in steps) for kind in ("wall", "cpu", "others")}
    peak = max(report["peak_mb"] for report in reports)
    return {**kinds, "pairs_per_s": PAIRS / kinds["wall"], "peak_mb": peak, "steps": len(steps)}


def _table(figures: dict[str, dict[str, float]], dtype: str) -> Table:
    table = Table(title=f"Reward model, SmolLM2-135M, {PAIRS} pairs of 128 + 2 × 128 tokens, {dtype} (medians)")
    for name in ("side", "pairs/s", "s/update", "CPU-s", "peak MB", "others", "updates"):
        table.add_column(name, justify="left" if name == "side" else "right")
    for side, name in (("ours", "ours"), ("trl", "TRL")):
        f = figures[side]
        table.add_row(
            name, f"{f['pairs_per_s']:.2f}", f"{f['wall']:.2f}", f"{f['cpu']:.2f}", f"{f['peak_mb']:.0f}",
            f"{f['others']:.2f}", f"{f['steps']:.0f}",
        )  # fmt: skip
    ours, trl = figures["ours"], figures["trl"]
    table.add_row(
        "[bold]ratio", f"[bold]{trl['wall'] / ours['wall']:.2f}×", "", f"[bold]{trl['cpu'] / ours['cpu']:.2f}×",
        f"[bold]{ours['peak_mb'] / trl['peak_mb']:.0%}", "", f"asked {ASKED:g}×, 100%",
    )  # fmt: skip
    return table


if __name__ == "__main__":
    main()
