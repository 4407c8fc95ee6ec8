"""The policy that a name, a folder, a configuration, a run or a checkpoint means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlhf_lightning.cli.document import Document, read
from rlhf_lightning.cli.expand import Expander
from rlhf_lightning.cli.signatures import import_class
from rlhf_lightning.configfiles import find_config
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.models.run_policy import POLICY_KEYS, RunPolicy, is_run
from rlhf_lightning.protocols import ModelSource


def find_policy(model: str | None, config: str | None) -> ModelSource:
    """The policy that the user names.

    Args:
        model: A model source's name, a model folder, a run folder or a checkpoint inside one; or None.
        config: A configuration whose policy is meant, untrained; or None.

    Raises:
        RLHFError: If it cannot be found.
    """
    if config is not None:
        return _of_configuration(find_config(config))
    path = Path(str(model)).expanduser()
    if is_run(path) or path.is_file():
        return RunPolicy(str(path))
    if path.is_dir():
        return _source({"name": "folder", "path": str(path)}, Document())
    return _source(str(model), Document())


def _of_configuration(config: Path) -> ModelSource:
    document = read([config])
    arguments = (document.values.get("model") or {}).get("init_args") or {}
    key = next((name for name in POLICY_KEYS if name in arguments), None)
    if key is None:
        raise ConfigError(f"{config}: its model has no {' or '.join(POLICY_KEYS)}")
    return _source(arguments[key], document, key)


def _source(value: Any, document: Document, key: str = "policy") -> ModelSource:
    expanded = Expander(document).plugin(value, "model_source", ("--model",) if not document.values else ("model", key))
    cls = import_class(expanded["class_path"], "")
    try:
        source: ModelSource = cls(**expanded.get("init_args", {}))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{cls.__name__}: {error}") from error
    return source
