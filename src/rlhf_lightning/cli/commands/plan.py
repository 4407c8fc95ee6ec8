"""Tell what a run will need before it is paid for: memory by part, devices, time, cost, and whether it fits.

``rlhf plan --config paper/ppo_32b_rm.yaml --devices 64 --device a100-80gb --trainer.strategy=fsdp2``
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rlhf_lightning.errors import ConfigError

if TYPE_CHECKING:
    from rlhf_lightning.planning.machines import Machine
    from rlhf_lightning.planning.plan import Plan
    from rlhf_lightning.planning.resolve import Setting

DEFAULT_GPU = "a100-80gb"


def main(words: Sequence[str]) -> int:
    """Runs the command: its own options are taken out, the others are those of ``rlhf fit``."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when the hub's library is imported: a plan asks no network
    from rlhf_lightning.plugins import load_builtins

    options, rest = _parser().parse_known_args(words)
    load_builtins()
    plan = make_plan(options, rest)
    (_print_json if options.json else _print_tables)(plan)
    return 0 if plan.fits else 1


def make_plan(options: argparse.Namespace, words: Sequence[str]) -> Plan:
    """The plan of the configuration that the words give.

    Raises:
        RLHFError: For all that the user can mend.
    """
    from rlhf_lightning.cli import plans
    from rlhf_lightning.planning.plan import plan
    from rlhf_lightning.planning.resolve import job_of

    values = plans.ParsedConfig(words).values
    machine, said = _machine(options, values["trainer"])
    module = plans.module_of(values)
    lengths = plans.lengths_in(module, values.get("data"))
    setting = _setting(options, plans.trainer_setting(values["trainer"], machine, lengths))
    job = job_of(plans.holdings_of(module), module.make_optimizer, setting)
    return plan(job.changed(notes=(*job.notes, *said)), machine, price=options.price)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="rlhf plan",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="All other options are those of rlhf fit: --config NAME --KEY=VALUE …. Exit code 1: it does not fit.",
    )
    parser.add_argument("--device", help="a100-80gb, h100-80gb, …, or cpu, which is this machine's")
    parser.add_argument("--devices", type=int, help="ranks of the run (default: trainer.devices × trainer.num_nodes)")
    parser.add_argument("--per_node", type=int, help="ranks of one machine (default: 8, or trainer.devices)")
    parser.add_argument("--memory", help="of a device, such as 80GB (1e9 bytes) or 24GiB")
    parser.add_argument("--flops", help="peak operations a second of a device, such as 312e12")
    parser.add_argument("--bandwidth", help="of a device's memory, such as 2.0e12 or 2TB/s")
    parser.add_argument("--interconnect", help="between devices, such as 300GB/s")
    parser.add_argument("--mfu", type=float, help="share of the peak that large products reach (default 0.4)")
    parser.add_argument("--price", type=float, help="of a device-hour, in dollars")
    parser.add_argument("--prompt_tokens", type=int, help="mean tokens of a prompt")
    parser.add_argument("--response_tokens", type=int, help="mean tokens of a response, or of a whole example")
    parser.add_argument(
        "--architecture", action="append", default=[], metavar="PLACE=CARD",
        help="sizes of a model that is not here: models/orm_32b=glm4-32b, or a YAML file; may be repeated",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="for machines")
    return parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        """Raises instead of ending the program."""
        raise ConfigError(f"rlhf plan: {message} (see rlhf plan --help)")


def _machine(options: argparse.Namespace, trainer: dict[str, Any]) -> tuple[Machine, tuple[str, ...]]:
    """The device, and what was assumed of it."""
    from rlhf_lightning.planning.machines import CPU, machine_named, quantity

    elsewhere = options.memory or options.flops or (options.devices or 1) > 1
    asked = options.device or (CPU if trainer.get("accelerator") == CPU or not elsewhere else DEFAULT_GPU)
    said = () if options.device else (f"device {asked} (--device says another)",)
    texts = {"memory": options.memory, "bandwidth": options.bandwidth, "interconnect": options.interconnect}
    changes: dict[str, Any] = {name: quantity(text, f"--{name}") for name, text in texts.items() if text}
    if options.flops:
        changes |= dict.fromkeys(("narrow_flops", "wide_flops"), quantity(options.flops, "--flops"))
    if options.mfu is not None:
        if not 0 < options.mfu <= 1:
            raise ConfigError(f"--mfu: a share of the peak, above 0 and at most 1, got {options.mfu}")
        changes["compute_share"] = options.mfu
    return replace(machine_named(asked), **changes), said


def _setting(options: argparse.Namespace, given: Setting) -> Setting:
    """The trainer's setting with the command's own options on top."""
    for name in ("devices", "per_node", "prompt_tokens", "response_tokens"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name} must be at least 1, got {value}")
    lengths, told = given.lengths, (options.prompt_tokens, options.response_tokens)
    if any(told):
        prompt, response = (own or other for own, other in zip(told, (lengths.prompt, lengths.response), strict=True))
        lengths = replace(lengths, prompt=prompt, response=response, said="" if all(told) else lengths.said)
    devices = options.devices or given.devices
    per_node = options.per_node or (given.per_node if given.devices > 1 and not options.devices else min(8, devices))
    return replace(
        given, lengths=lengths, devices=devices, per_node=per_node, architectures=_architectures(options.architecture)
    )


def _architectures(words: Sequence[str]) -> dict[str, str]:
    pairs = [word.partition("=") for word in words]
    for word, (place, _, card) in zip(words, pairs, strict=True):
        if not (place and card):
            raise ConfigError(f"--architecture: {word!r} is not PLACE=CARD, such as models/orm_32b=glm4-32b")
    return {place: card for place, _, card in pairs}


def _print_json(plan: Plan) -> None:
    import json

    print(json.dumps(plan.as_dict(), indent=1))


def _print_tables(plan: Plan) -> None:
    from rich.console import Console

    from rlhf_lightning.planning.report import show

    show(plan, Console())
