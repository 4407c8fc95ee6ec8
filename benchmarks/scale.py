"""What scaling out costs here: strategies on two processes beside one, vLLM beside our own sampler, hand-overs.

    python benchmarks/scale.py --repeats 2
    python benchmarks/scale.py --parts samplers          # needs: make vllm

See ``benchmarks/README.md``.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from scale import strategies, vllm_sampler

PARTS = ("strategies", "samplers")


def main() -> None:
    """Runs the parts asked for and prints a table of each."""
    options = _parser().parse_args()
    console = Console(width=None if sys.stdout.isatty() else 130)
    found = {}
    if "strategies" in options.parts:
        with tempfile.TemporaryDirectory() as folder:
            given = {"steps": options.steps, "repeats": options.repeats, "folder": Path(folder), "console": console}
            found["strategies"] = strategies.run(options.strategies, **given)
        console.print(strategies.table(found["strategies"]))
    if "samplers" in options.parts:
        given = {"draws": options.steps, "repeats": options.repeats, "console": console, "python": options.python}
        found["samplers"] = vllm_sampler.run(list(vllm_sampler.SIDES), **given)
        console.print(vllm_sampler.table(found["samplers"]))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--strategies", nargs="*", choices=strategies.STRATEGIES, default=list(strategies.STRATEGIES))
    parser.add_argument("--steps", type=int, default=2, help="counted rollouts or draws, after one to warm up")
    parser.add_argument("--repeats", type=int, default=2, help="runs a side, alternated")
    parser.add_argument(
        "--python", type=Path, default=vllm_sampler.VLLM_PYTHON, help="an interpreter that has vLLM, for the samplers"
    )
    parser.add_argument("--json", type=Path, help="file for all figures")
    return parser


if __name__ == "__main__":
    main()
