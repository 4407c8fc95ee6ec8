"""One side in a process of its own, so that its peak memory is its own: prints one line of JSON."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from step.cases import CASES
from step.clock import peak_memory


def main(arguments: list[str] | None = None) -> None:
    """Runs one side of one case."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    result = _rate(options) if options.side == "rate" else _side(options)
    print("RESULT " + json.dumps({"side": options.side, "dtype": options.dtype, **result}))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--side", choices=["ours", "trl", "rate"], required=True)
    parser.add_argument("--case", choices=list(CASES), default="tiny")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--token-budget", type=int, default=16_384)
    return parser


def _rate(options: argparse.Namespace) -> dict[str, Any]:
    from step.rate import matrix_rate

    return {"rate": matrix_rate(options.dtype)}


def _side(options: argparse.Namespace) -> dict[str, Any]:
    case = CASES[options.case]
    folder = case.folder(options.models)
    given = (folder, case.prompt_tokens, options.dtype, options.steps + 1)
    if options.side == "ours":
        from step import ours

        result = ours.run(*given, options.token_budget)
    else:
        from step import peer

        result = peer.run(*given, case.peer_rows)
    warm, *steps = result.pop("steps")
    return {"case": options.case, "warm_up": warm, "steps": steps, "peak_mb": peak_memory(), **result}


if __name__ == "__main__":
    main()
