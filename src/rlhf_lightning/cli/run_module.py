"""The module of a run, made again from the configuration in the run's folder."""

from __future__ import annotations

from argparse import ArgumentError
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from lightning import LightningModule, Trainer, seed_everything

from rlhf_lightning.errors import ConfigError, DataError, RunFolderError
from rlhf_lightning.models.checkpoints import read_checkpoint
from rlhf_lightning.modules.epoch import EpochModule
from rlhf_lightning.modules.policy import PolicyModule
from rlhf_lightning.run_layout import newest_checkpoint, rollout_checkpoint
from rlhf_lightning.runs import Run


def policy_module(run: Run) -> PolicyModule:
    """The run's module with its models as they were before the first update; no reference, no data.

    Raises:
        ConfigError: If its configuration cannot be read, or trains no policy.
    """
    module = _module(run)
    if not isinstance(module, PolicyModule):
        raise ConfigError(f"{run.path}: {type(module).__name__} trains no policy by reinforcement learning")
    module.generator.tokenizer = module.generator.source.tokenizer()
    module.load_trained()
    return module


def scalar_part(path: Path, part: str) -> tuple[Any, Any]:
    """The critic or the reward model that a run has trained, with its head, and its tokenizer.

    Args:
        path: The run's folder, or a checkpoint inside one.
        part: ``critic`` or ``reward model``.

    Raises:
        ConfigError: If the run trains none.
        RunFolderError: If there is no such run, or it has no checkpoint.
    """
    folder = path.parent.parent if path.suffix == ".ckpt" else path
    checkpoint = path if path.suffix == ".ckpt" else newest_checkpoint(folder)
    if checkpoint is None or not checkpoint.exists():
        raise RunFolderError(f"{path} is no run with a checkpoint, so it has no {part} to export")
    module = _module(Run(folder))
    module.load_trained()
    found = module.scalar_models().get(part)
    if found is None:
        raise ConfigError(f"{folder}: {type(module).__name__} has no {part} with a model of its own")
    lay_over(module, checkpoint)
    return found


def _module(run: Run) -> Any:
    config = run.config
    seed_everything(int(config.get("seed_everything") or 0), verbose=False)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningModule, "model", required=True)
    try:
        return parser.instantiate_classes(parser.parse_object({"model": config.get("model")})).model
    except (ArgumentError, ValueError) as error:
        raise ConfigError(f"{run.path}: its configuration does not make a module any more: {error}") from error


def forward_context(run: Run) -> Any:
    """What the run's training steps run their forward in, as a function that gives the context."""
    given: Mapping[str, Any] = run.config.get("trainer") or {}
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(accelerator="cpu", precision=given.get("precision"), enable_model_summary=False, **quiet)
    return trainer.precision_plugin.forward_context


def checkpoint_before(run: Run, rollout: int) -> Path | None:
    """The checkpoint that rollout number ``rollout`` began with, else the nearest that the run has kept.

    None where a run's first rollout has no weights but those that the run started from.

    Raises:
        RunFolderError: If there is no checkpoint at all.
    """
    own = rollout_checkpoint(run.path, rollout)
    if own.exists():
        return own
    if rollout == 0:
        return None
    kept = sorted(own.parent.glob("rollout-*.ckpt"), key=lambda path: abs(int(path.stem[8:]) - rollout))
    found = kept[0] if kept else newest_checkpoint(run.path)
    if found is None:
        raise RunFolderError(f"run {run.path} has no checkpoint to replay rollout {rollout} with")
    return found


def lay_over(module: EpochModule, checkpoint: Path) -> int:
    """Puts a checkpoint's weights and controllers into a module; how many rollouts they had been trained on.

    Raises:
        DataError: If the checkpoint cannot be read, or is of another model.
    """
    try:
        state = read_checkpoint(checkpoint)
        unknown = module.load_state_dict(state["state_dict"], strict=False).unexpected_keys
        module.checkpointing.restore(state["rlhf"], module.controllers())
    except (OSError, KeyError, RuntimeError) as error:
        raise DataError(f"checkpoint {checkpoint} cannot be laid over the run's model: {error}") from error
    ours = {name for name in unknown if not name.startswith(("reference.",))}
    if ours:
        raise DataError(f"checkpoint {checkpoint} is of another model: it has {sorted(ours)[0]!r}")
    return int(state["rlhf"]["rollout_index"])
