"""Our GRPO step beside that of TRL's ``GRPOTrainer``: the same work, runs alternated, each in a process of its own.

    python benchmarks/grpo_step.py --cases tiny smol45 smol256 --dtype float32

Both sides run with the same model, prompts, dtype, threads, 8 samples of exactly 64 new tokens for each of 4 prompts, a
reference model (beta 0.04), one update a rollout, and no gradient checkpointing. See ``benchmarks/README.md``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from step.cases import CASES
from step.environment import add_option, environment
from step.summary import Summary, summarise
from step.table import show

HERE = Path(__file__).parent


def main() -> None:
    """Runs the cases asked for and prints the tables."""
    options = _parser().parse_args()
    console = Console(width=None if sys.stdout.isatty() else 130)
    with tempfile.TemporaryDirectory() as models:
        summaries = [measure(case, options, Path(models), console) for case in options.cases]
    show(summaries, console)
    if options.json:
        options.json.write_text(json.dumps([summary.as_dict() for summary in summaries], indent=1))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of both sides' weights")
    parser.add_argument("--steps", type=int, default=3, help="counted steps a process, after one to warm up")
    parser.add_argument("--repeats", type=int, default=2, help="processes a side")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--token-budget", type=int, default=16_384, help="ours: most tokens of a micro-batch")
    add_option(parser)
    parser.add_argument("--json", type=Path, help="file for all figures")
    return parser


def measure(case: str, options: argparse.Namespace, models: Path, console: Console) -> Summary:
    """Runs one case: the matrix rate, then ours and the peer in turn, then the rate again."""
    order = ["rate", *["ours", "trl"] * options.repeats, "rate"]
    reports = []
    for side in order:
        reports.append(_child(side, case, options, models))
        console.print(f"{case} {options.dtype} {side}: {_line(reports[-1])}", highlight=False)
    return summarise(case, options.dtype, reports)


def _child(side: str, case: str, options: argparse.Namespace, models: Path) -> dict[str, Any]:
    given = {"case": case, "dtype": options.dtype, "steps": options.steps, "threads": options.threads}
    given |= {"models": models, "token-budget": options.token_budget}
    command = [sys.executable, "-m", "step.child", "--side", side]
    command += [text for name, value in given.items() for text in (f"--{name}", str(value))]
    started = environment(options, ours=side == "ours")
    done = subprocess.run(command, cwd=HERE, env=started, capture_output=True, text=True)
    results = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not results:
        raise SystemExit(f"{' '.join(command)} ended with code {done.returncode}:\n{done.stderr[-4000:]}")
    return dict(json.loads(results[-1].removeprefix("RESULT ")))


def _line(report: dict[str, Any]) -> str:
    if report["side"] == "rate":
        return ", ".join(f"{name} {value:.0f}" for name, value in report["rate"].items()) + " GFLOP/s"
    steps = ", ".join(f"{step['wall']:.2f} s ({step['cpu']:.2f} CPU-s)" for step in report["steps"])
    return f"{steps}; peak {report['peak_mb']:.0f} MB"


if __name__ == "__main__":
    main()
