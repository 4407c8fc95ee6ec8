"""Write a policy as a Hugging Face folder, with its adapters merged or as adapters alone.

``rlhf export --model runs/ppo --out models/ppo``
"""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("--model", required=True, help="a run folder, a checkpoint, a model folder or a source's name")
    parser.add_argument("--out", required=True, help="folder to write; must not exist yet")
    parser.add_argument("--adapters", action="store_true", help="write the adapters alone, for peft, not a whole model")


def run(options: argparse.Namespace) -> int:
    """Exports."""
    from rlhf_lightning.cli.policies import find_policy
    from rlhf_lightning.models.export import check_free, export_policy
    from rlhf_lightning.models.run_policy import RunPolicy
    from rlhf_lightning.plugins import load_builtins

    load_builtins()
    out = Path(options.out).expanduser()
    check_free(out)
    policy = find_policy(options.model, None)
    model = policy.load_adapted() if options.adapters and isinstance(policy, RunPolicy) else policy.load()
    export_policy(model, policy.tokenizer(), out, adapters=options.adapters)
    print(f"{out}: {'adapters' if options.adapters else 'a whole model'}")
    return 0
