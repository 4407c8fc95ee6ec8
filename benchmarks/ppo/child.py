"""One side in a process of its own, so that its peak memory is its own: prints one line of JSON."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from step.cases import CASES
from step.clock import peak_memory

from ppo.work import SIDES, reward_folder


def main(arguments: list[str] | None = None) -> None:
    """Runs one side of one case; ``--side prepare`` makes the models alone."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    case = CASES[options.case]
    folder = case.folder(options.models)
    reward = reward_folder(folder, options.models)
    if options.side == "prepare":
        print("RESULT {}")
        return
    if options.side == "trl":
        from ppo.peer import run
    else:
        from ppo.ours import run
    side = SIDES[options.side]
    _, *steps = run(side, folder, reward, case.prompt_tokens, options.dtype, options.steps + 1)
    print("RESULT " + json.dumps({"side": options.side, "steps": steps, "peak_mb": peak_memory()}))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--side", choices=[*SIDES, "prepare"], required=True)
    parser.add_argument("--case", choices=list(CASES), default="tiny")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--models", type=Path, required=True)
    return parser


if __name__ == "__main__":
    main()
