"""The policy that a run has trained, as a source of models: ``policy: runs/quickstart``."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from rlhf_lightning.errors import ConfigError, RunFolderError
from rlhf_lightning.models.checkpoints import read_checkpoint
from rlhf_lightning.models.lora import LoRA
from rlhf_lightning.models.prepare import in_float32, load_to_train, trainable, trained_dtype
from rlhf_lightning.models.sources import DType
from rlhf_lightning.protocols import ModelSource
from rlhf_lightning.registry import nearest, register, resolve
from rlhf_lightning.run_layout import CHECKPOINTS_FOLDER, CONFIG_FILE, newest_checkpoint
from rlhf_lightning.run_layout import is_run as is_run

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

POLICY_KEYS = ("policy", "model")
"""Arguments of a module that hold the model it trains."""


@register("model_source", "run")
class RunPolicy(ModelSource):
    """The trained policy of a run folder, from one of its checkpoints, adapters merged.

    Args:
        path: The run folder (its newest checkpoint is taken), or a checkpoint inside one.
        dtype: Type the weights are given in; the one that they were trained in when not given, and float32 where
            adapters are merged: 16 bits would round most of what small adapters change away.

    Attributes:
        source: What the run started from.
        checkpoint: File of the weights.

    Raises:
        RunFolderError: If there is no such run, or it has no checkpoint yet.
        ConfigError: If its configuration has no policy.
    """

    def __init__(self, path: str, dtype: DType | None = None) -> None:
        given = Path(path).expanduser()
        is_file = given.suffix == ".ckpt" or given.is_file()
        self.folder, self.checkpoint = _checkpoint(given) if is_file else _newest(given)
        self.source, self._lora, self._sixteen_bits = policy_of(self.folder / CONFIG_FILE)
        narrow = self._sixteen_bits and self._lora is None
        self._own = trained_dtype(self.source, lora=None, sixteen_bits=narrow)
        self.dtype: str = dtype or self._own

    @property
    def context_length(self) -> int | None:
        """As of what the run started from."""
        return getattr(self.source, "context_length", None)

    @property
    def place(self) -> str:
        """The run's folder."""
        return str(self.folder)

    def config_at_hand(self) -> PretrainedConfig | None:
        """As of what the run started from."""
        return self.source.config_at_hand()

    def config(self) -> PretrainedConfig:
        """The architecture of what the run started from."""
        return self.source.config()

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of what the run started from."""
        return self.source.tokenizer()

    def load(self) -> PreTrainedModel:
        """The model with the checkpoint's weights, in evaluation mode.

        Raises:
            ConfigError: If the checkpoint holds no policy, or another model's.
        """
        model = self.load_adapted()
        if self._lora:
            model = in_float32(model).merge_and_unload()  # type: ignore[operator]
        return model if self.dtype == self._own else model.to(getattr(torch, self.dtype))  # type: ignore[arg-type]

    def load_adapted(self) -> PreTrainedModel:
        """As ``load``, but with adapters as they were trained, where the run has any."""
        loaded = load_to_train(self.source, lora=self._lora, sixteen_bits=self._sixteen_bits)
        model = trainable(loaded, lora=self._lora, gradient_checkpointing=False)
        load_policy_weights(model, self.checkpoint)
        model.eval()  # type: ignore[no-untyped-call]
        return model

    def identity(self) -> str:
        """What the run started from, with the SHA-256 of the checkpoint's first and last MiB."""
        size = self.checkpoint.stat().st_size
        digest = hashlib.sha256(str(size).encode())
        with self.checkpoint.open("rb") as file:
            digest.update(file.read(1 << 20))
            file.seek(max(0, size - (1 << 20)))
            digest.update(file.read())
        return f"{self.source.identity()}, trained: sha256 {digest.hexdigest()[:16]}"


def policy_of(config: Path) -> tuple[ModelSource, LoRA | None, bool]:
    """What the policy of a run's configuration starts from, its adapters, and whether 16 bits were let train.

    Raises:
        ConfigError: If it has none, or it cannot be made.
    """
    try:
        values = yaml.safe_load(config.read_text(encoding="utf-8"))
        arguments = values["model"]["init_args"]
        key = next(name for name in POLICY_KEYS if name in arguments)
        source = _made(arguments[key])
    except (KeyError, TypeError, StopIteration, yaml.YAMLError) as error:
        raise ConfigError(f"{config}: its model has no {' or '.join(POLICY_KEYS)}") from error
    lora = arguments.get("lora")
    adapters = None if lora is None else LoRA(**lora.get("init_args", lora))
    return source, adapters, bool(arguments.get("train_in_16_bits", False))


def load_policy_weights(model: PreTrainedModel, checkpoint: Path) -> None:
    """Puts a checkpoint's policy weights into a model.

    Raises:
        ConfigError: If the checkpoint holds none, or they are another model's.
    """
    states: Mapping[str, Any] = read_checkpoint(checkpoint)["state_dict"]
    prefix = "policy."
    weights = {name.removeprefix(prefix): value for name, value in states.items() if name.startswith(prefix)}
    if not weights:
        raise ConfigError(f"{checkpoint} holds no policy weights (names that begin with {prefix!r})")
    missing = {name for name, p in model.named_parameters() if p.requires_grad} - set(weights)
    try:
        unexpected = model.load_state_dict(weights, strict=False).unexpected_keys
    except RuntimeError as error:
        raise ConfigError(f"{checkpoint} is of another model: {error}") from error
    if missing or unexpected:
        odd = sorted(missing) or unexpected
        raise ConfigError(f"{checkpoint} is of another model: {len(odd)} weights differ by name, first {odd[0]!r}")


def _made(value: Any) -> ModelSource:
    """A model source in short form or by class path."""
    if isinstance(value, str):
        value = {"name": value}
    arguments = {k: v for k, v in value.items() if k not in ("class_path", "name", "init_args")}
    if "class_path" in value:
        module, _, name = value["class_path"].rpartition(".")
        cls = getattr(importlib.import_module(module), name)
        if not (isinstance(cls, type) and issubclass(cls, ModelSource)):  # another's run folder says what is called
            raise ConfigError(f"{value['class_path']} is no model source")
    else:
        cls = resolve("model_source", value["name"])
    source: ModelSource = cls(**arguments | (value.get("init_args") or {}))
    return source


def _newest(folder: Path) -> tuple[Path, Path]:
    if not (folder / CONFIG_FILE).is_file():
        siblings = [p.parent.name for p in folder.parent.glob(f"*/{CONFIG_FILE}")]
        near = nearest(folder.name, siblings)
        hint = f"; did you mean {folder.parent / near}?" if near else ""
        raise RunFolderError(f"{folder} is not a run folder: it has no {CONFIG_FILE}{hint}")
    found = newest_checkpoint(folder)
    if found is None:
        raise RunFolderError(f"run {folder} has no checkpoint yet in {folder / CHECKPOINTS_FOLDER}")
    return folder, found


def _checkpoint(file: Path) -> tuple[Path, Path]:
    if not file.exists():
        raise RunFolderError(f"checkpoint {file} does not exist")
    folder = file.parent.parent
    if file.parent.name != CHECKPOINTS_FOLDER or not (folder / CONFIG_FILE).is_file():
        raise RunFolderError(
            f"checkpoint {file} does not lie in a run folder; its {CONFIG_FILE} is needed ({folder / CONFIG_FILE})"
        )
    return folder, file
