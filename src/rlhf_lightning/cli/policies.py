"""The policy that a name, a folder, a configuration, a run or a checkpoint means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_lightning.cli.document import Document, read
from rlhf_lightning.cli.expand import Expander
from rlhf_lightning.cli.runs import RunFolder
from rlhf_lightning.cli.signatures import import_class
from rlhf_lightning.configfiles import find_config
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.models.lora import LoRA
from rlhf_lightning.protocols import ModelSource
from rlhf_lightning.run_layout import CHECKPOINTS_FOLDER, CONFIG_FILE

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

POLICY_KEYS = ("policy", "model")
"""Arguments of a module that hold the model it trains."""


@dataclass(frozen=True)
class Policy:
    """A model to generate with.

    Attributes:
        source: Where it comes from.
        lora: Its adapters, as its run had them.
        checkpoint: Weights that replace the source's, or None.
    """

    source: ModelSource
    lora: LoRA | None = None
    checkpoint: Path | None = None

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The source's tokenizer."""
        return self.source.tokenizer()

    def context_length(self) -> int:
        """Most tokens of prompt and response together."""
        return int(self.source.config().get_text_config().max_position_embeddings)

    def load(self) -> PreTrainedModel:
        """The model in evaluation mode, with the checkpoint's weights if there is one."""
        from rlhf_lightning.models.prepare import trainable

        model = trainable(self.source.load(), lora=self.lora, gradient_checkpointing=False)
        if self.checkpoint is not None:
            load_policy_weights(model, self.checkpoint)
        model.eval()  # type: ignore[no-untyped-call]
        return model


def find_policy(model: str | None, config: str | None) -> Policy:
    """The policy that the user names.

    Args:
        model: A model source's name, a model folder, a run folder or a checkpoint inside one; or None.
        config: A configuration whose policy is meant; or None.

    Raises:
        RLHFError: If it cannot be found.
    """
    if config is not None:
        return policy_of(find_config(config))
    path = Path(str(model)).expanduser()
    if path.is_file() or path.suffix == ".ckpt":
        return _of_checkpoint(path)
    if (path / CONFIG_FILE).is_file():
        return policy_of(path / CONFIG_FILE, RunFolder(str(path.parent), path.name or ".").last_checkpoint())
    if path.is_dir():
        return Policy(_source({"name": "folder", "path": str(path)}, Document()))
    return Policy(_source(str(model), Document()))


def policy_of(config: Path, checkpoint: Path | None = None) -> Policy:
    """The policy of a configuration file.

    Raises:
        ConfigError: If it has none.
    """
    document = read([config])
    arguments = (document.values.get("model") or {}).get("init_args") or {}
    key = next((name for name in POLICY_KEYS if name in arguments), None)
    if key is None:
        raise ConfigError(f"{config}: its model has no {' or '.join(POLICY_KEYS)}")
    return Policy(_source(arguments[key], document, key), _lora(arguments.get("lora")), checkpoint)


def load_policy_weights(model: PreTrainedModel, checkpoint: Path) -> None:
    """Puts a checkpoint's policy weights into a model.

    Raises:
        ConfigError: If the checkpoint holds none, or they are another model's.
    """
    import torch

    states: Mapping[str, Any] = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
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


def _of_checkpoint(path: Path) -> Policy:
    if not path.exists():
        raise ConfigError(f"--model: checkpoint {path} does not exist")
    config = path.parent.parent / CONFIG_FILE
    if path.parent.name != CHECKPOINTS_FOLDER or not config.is_file():
        raise ConfigError(f"--model: {path} does not lie in a run folder; its {CONFIG_FILE} is needed ({config})")
    return policy_of(config, path)


def _source(value: Any, document: Document, key: str = "policy") -> ModelSource:
    expanded = Expander(document).plugin(value, "model_source", ("--model",) if not document.values else ("model", key))
    cls = import_class(expanded["class_path"], "")
    try:
        source: ModelSource = cls(**expanded.get("init_args", {}))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{cls.__name__}: {error}") from error
    return source


def _lora(value: Any) -> LoRA | None:
    if value is None:
        return None
    return LoRA(**(value.get("init_args", {}) if "class_path" in value else value))
