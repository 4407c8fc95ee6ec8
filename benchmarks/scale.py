"""What scaling out costs here: strategies on two processes beside one process.

    python benchmarks/scale.py --repeats 2

See ``benchmarks/README.md``.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from scale import strategies


def main() -> None:
    """Runs the strategies asked for and prints the table."""
    options = _parser().parse_args()
    console = Console(width=None if sys.stdout.isatty() else 130)
    with tempfile.TemporaryDirectory() as folder:
        given = {"steps": options.steps, "repeats": options.repeats, "folder": Path(folder), "console": console}
        found = strategies.run(options.strategies, **given)
    console.print(strategies.table(found))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strategies", nargs="*", choices=strategies.STRATEGIES, default=list(strategies.STRATEGIES))
    parser.add_argument("--steps", type=int, default=2, help="counted rollouts a process, after one to warm up")
    parser.add_argument("--repeats", type=int, default=2, help="runs a side, alternated")
    parser.add_argument("--json", type=Path, help="file for all figures")
    return parser


if __name__ == "__main__":
    main()
