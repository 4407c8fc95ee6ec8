"""Write what a run trained as a Hugging Face folder: its policy, its critic, or its reward model.

``rlhf export --model runs/ppo --out models/ppo`` (with ``--part critic`` for the critic and its head)
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("--model", required=True, help="a run folder, a checkpoint, a model folder or a source's name")
    parser.add_argument("--out", required=True, help="folder to write; must not exist yet")
    parser.add_argument("--part", choices=list(PARTS), default="policy", help="which of a run's models")
    parser.add_argument("--adapters", action="store_true", help="write the adapters alone, for peft, not a whole model")
    parser.add_argument("--shard-size", default="5GB", help="most of the weights in one safetensors file")


def run(options: argparse.Namespace) -> int:
    """Exports."""
    from rlhf_lightning.models.export import check_free
    from rlhf_lightning.plugins import load_builtins

    load_builtins()
    check_free(Path(options.out).expanduser())
    PARTS[options.part](options)
    what = "adapters" if options.adapters else f"the whole {options.part.replace('_', ' ')}"
    print(f"{options.out}: {what}")
    return 0


def _policy(options: argparse.Namespace) -> None:
    from rlhf_lightning.cli.policies import find_policy
    from rlhf_lightning.models.export import export_policy
    from rlhf_lightning.models.run_policy import RunPolicy
    from rlhf_lightning.samplers._endings import eos_token_ids

    policy = find_policy(options.model, None)
    model = policy.load_adapted() if options.adapters and isinstance(policy, RunPolicy) else policy.load()
    tokenizer, source = policy.tokenizer(), policy.source if isinstance(policy, RunPolicy) else policy
    settings = {"adapters": options.adapters, "shard_size": options.shard_size, "base": source.place}
    export_policy(model, tokenizer, Path(options.out).expanduser(), ends=eos_token_ids(model, tokenizer), **settings)


def _scalar(options: argparse.Namespace, part: str) -> None:
    from rlhf_lightning.cli.run_module import scalar_part
    from rlhf_lightning.errors import ConfigError
    from rlhf_lightning.models.export import export_scalar

    if options.adapters:
        raise ConfigError(f"--adapters: only a policy's can be written alone; a {part} is written whole, with its head")
    model, tokenizer = scalar_part(Path(options.model).expanduser(), part)
    export_scalar(model, tokenizer, Path(options.out).expanduser(), shard_size=options.shard_size)


def _critic(options: argparse.Namespace) -> None:
    _scalar(options, "critic")


def _reward_model(options: argparse.Namespace) -> None:
    _scalar(options, "reward model")


PARTS: dict[str, Callable[[Any], None]] = {"policy": _policy, "critic": _critic, "reward_model": _reward_model}
"""What can be written, by the name that ``--part`` has for it."""
