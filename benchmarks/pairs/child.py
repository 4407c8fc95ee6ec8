"""One side in a process of its own, so that its peak memory is its own: prints one line of JSON."""

from __future__ import annotations

import argparse
import json

import torch
from step.cases import smollm2
from step.clock import peak_memory


def main() -> None:
    """Runs one side."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--side", choices=["ours", "trl"], required=True)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    from importlib import import_module

    side = import_module("pairs.ours" if options.side == "ours" else "pairs.peer")
    result = side.run(smollm2(None), options.dtype, options.steps + 1)  # type: ignore[arg-type]
    _, *steps = result.pop("steps")
    print("RESULT " + json.dumps({"side": options.side, "steps": steps, "peak_mb": peak_memory(), **result}))


if __name__ == "__main__":
    main()
