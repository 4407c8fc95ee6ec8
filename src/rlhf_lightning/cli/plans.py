"""Plans from the command line: of a parsed configuration before its run, and of one that no machine here can run."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule, LightningModule

from rlhf_lightning.cli.lightning import RLHFCLI
from rlhf_lightning.cli.messages import first_cause
from rlhf_lightning.cli.signatures import import_class
from rlhf_lightning.errors import ConfigError, ModelSourceError, RLHFError, RunFolderError
from rlhf_lightning.models.unread import Unread
from rlhf_lightning.planning.job import Job, Lengths
from rlhf_lightning.planning.machines import Machine, machine_named
from rlhf_lightning.planning.plan import Plan, plan
from rlhf_lightning.planning.resolve import Setting, job_of
from rlhf_lightning.planning.verdict import fits
from rlhf_lightning.protocols import ModelSource

if TYPE_CHECKING:
    from rlhf_lightning.holdings import Holdings
    from rlhf_lightning.modules.epoch import EpochModule

_MISSING = (ModelSourceError, RunFolderError)
_LIMITS = ("max_prompt_tokens", "max_tokens")
"""Arguments of data modules that bound a prompt or a whole sequence."""

ASSUMED_TOKENS = 1024
"""Tokens of a prompt, or of a whole example, where nothing bounds or tells them."""


class ParsedConfig(RLHFCLI):
    """The configuration of ``rlhf fit``, parsed and checked; nothing of it is made.

    Args:
        words: Options of ``rlhf fit``.
    """

    def __init__(self, words: Sequence[str]) -> None:
        super().__init__(["fit", *words])

    @property
    def values(self) -> dict[str, Any]:
        """All of it as plain values."""
        values: dict[str, Any] = json.loads(self._parser("fit").dump(self._own, format="json", skip_none=False))
        return values

    def before_instantiate_classes(self) -> None:
        """Opens no folder."""

    def instantiate_classes(self) -> None:
        """Makes nothing."""

    def _set_seed(self) -> None:
        """Draws nothing."""

    def _add_instantiators(self) -> None:
        """Makes nothing."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Runs nothing."""


def module_of(values: Mapping[str, Any]) -> EpochModule:
    """The module of a configuration; model sources whose files are missing are stood in for.

    Raises:
        ConfigError: If it cannot be made, or says nothing of what it holds.
    """
    module = _made("model", LightningModule, _stood_in(values["model"]))
    holdings_of(module)
    return module  # type: ignore[no-any-return]


def holdings_of(module: Any) -> Holdings:
    """What a module holds.

    Raises:
        ConfigError: If it does not say.
    """
    held: Holdings | None = module.holdings() if hasattr(module, "holdings") else None
    if held is None:
        raise ConfigError(f"model: {type(module).__name__} does not say what it holds (holdings), so it has no plan")
    return held


def lengths_in(module: EpochModule, data: Mapping[str, Any] | None) -> Lengths:
    """Tokens of prompts and responses: of the data, where it and the tokenizer are at hand, else what bounds them."""
    try:
        if data is None:
            raise ConfigError("there is no data")
        if away := [held.source.place for held in holdings_of(module).models if held.source.config_at_hand() is None]:
            raise ConfigError(f"{away[0]} is not on this machine")
        made = _made("data", LightningDataModule, data)
        module.preflight(made)
        return lengths_of(module, made)
    except (RLHFError, OSError) as error:
        reason = str(error).splitlines()[0]
    given = (data or {}).get("init_args", {})
    limit = next((given[name] for name in _LIMITS if given.get(name)), None)
    bound = limit or ASSUMED_TOKENS
    said = f"{bound} tokens, {'the most that data allows' if limit else 'for want of a limit'}; not read: {reason}"
    holdings = holdings_of(module)
    if holdings.draws and holdings.decoding is not None:
        longest = holdings.decoding.max_new_tokens
        return Lengths(bound, longest, f"responses of {longest} tokens (max_new_tokens), prompts of {said}")
    if holdings.draws:
        return Lengths(bound, bound, f"prompts and responses of {said}")
    return Lengths(0, bound, f"examples of {said}")


def lengths_of(module: EpochModule, data: Any) -> Lengths:
    """Of the data, after the preflight; responses that are drawn count at their longest."""
    found = module.typical_lengths(data)
    if found is None:
        raise ConfigError(
            f"model: {type(module).__name__} does not say how long its prompts and responses are (typical_lengths)"
        )
    prompt, response = (max(round(tokens), least) for tokens, least in zip(found, (0, 1), strict=True))
    return Lengths(prompt, response)


def trainer_setting(trainer: Mapping[str, Any], machine: Machine, lengths: Lengths) -> Setting:
    """What the trainer's arguments say of a plan."""
    devices, nodes = trainer.get("devices"), int(trainer.get("num_nodes") or 1)
    per_node = int(str(devices)) if str(devices).isdigit() else 1
    callbacks = trainer.get("callbacks") or []
    paths = [str(c.get("class_path")) for c in (callbacks if isinstance(callbacks, list) else [callbacks])]
    strategy = trainer.get("strategy")
    return Setting(
        machine=machine,
        lengths=lengths,
        devices=max(1, per_node) * nodes,
        per_node=max(1, per_node),
        strategy=strategy,
        precision=trainer.get("precision"),
        evaluates=any(path.endswith("HeldOutEval") for path in paths),
        saves=trainer.get("enable_checkpointing") is not False,
    )


def check_fit(module: Any, data: Any, trainer: Mapping[str, Any]) -> None:
    """Refuses a run that cannot fit in this machine's memory, and warns of one that may not.

    It cannot if it does not with responses of a single token; with the longest ones it may or may not.

    Raises:
        ConfigError: With the verdict, and what would make it fit.
    """
    machine = _this_machine(str(trainer.get("accelerator") or "auto"))
    try:
        setting = trainer_setting(trainer, machine, lengths_of(module, data))
        job = job_of(holdings_of(module), module.make_optimizer, setting)
    except ConfigError as error:
        print(f"no plan was made: {error}", file=sys.stderr)
        return
    if machine.is_cpu:  # whose memory its ranks share
        job = job.changed(memory=job.memory / min(job.devices, job.per_node))
    if fits(job):
        return
    if fits(shortest(job)):
        print(f"plan: with responses at their longest, this run {_verdict(plan(job, machine))}", file=sys.stderr)
        return
    raise ConfigError(f"this run {_verdict(plan(job, machine))}. Go on all the same: --no-plan")


def shortest(job: Job) -> Job:
    """With responses of one token, where they are drawn."""
    return job.changed(lengths=replace(job.lengths, response=1)) if job.draws else job


def _verdict(made: Plan) -> str:
    tried = "; ".join(made.remedies) or "a smaller model, or more memory"
    return f"{made.verdict}. What would make it fit: {tried}"


def _this_machine(accelerator: str) -> Machine:
    if accelerator == "cpu" or not torch.cuda.is_available():
        return machine_named("cpu")
    own = torch.cuda.get_device_properties(0)
    return replace(machine_named("a100-80gb"), name=own.name, memory=float(own.total_memory))


def _made(key: str, base: type, values: Any) -> Any:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(base, key, required=True)
    try:
        parsed = parser.parse_object({key: values})
        try:
            return parser.instantiate_classes(parsed)[key]
        except ValueError as error:
            raise first_cause(error, parsed) from error
    except (ArgumentError, ValueError) as error:
        raise ConfigError(f"{key}: {error}") from error


def _stood_in(value: Any) -> Any:
    """The same values with :class:`Unread` for each model source whose files are missing."""
    if isinstance(value, list):
        return [_stood_in(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "class_path" in value and issubclass(import_class(value["class_path"], ""), ModelSource):
        return _source(value)
    return {name: _stood_in(item) for name, item in value.items()}


def _source(value: dict[str, Any]) -> dict[str, Any]:
    arguments = value.get("init_args") or {}
    try:
        import_class(value["class_path"], "")(**arguments)
    except _MISSING:
        if "path" not in arguments:
            raise
        known = {"place": arguments["path"]} | {k: v for k, v in arguments.items() if k == "dtype"}
        return {"class_path": f"{Unread.__module__}.{Unread.__qualname__}", "init_args": known}
    return value
