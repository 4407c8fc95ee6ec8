"""Architecture cards: the sizes of models that are not on this machine, as YAML beside this file; no weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import yaml

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.registry import check_choice

if TYPE_CHECKING:
    from transformers import PretrainedConfig

FOLDER = Path(__file__).parent / "architectures"


@dataclass(frozen=True)
class Card:
    """One architecture.

    Attributes:
        name: What it is called.
        repositories: Hub repositories that have these sizes.
        folders: Folders that the shipped configurations name and that stand for such a model.
        sizes: Arguments of its transformers configuration, ``model_type`` among them.
        assumption: Where the sizes come from.
    """

    name: str
    repositories: tuple[str, ...]
    folders: tuple[str, ...]
    sizes: dict[str, Any]
    assumption: str

    def config(self) -> PretrainedConfig:
        """The transformers configuration."""
        from transformers import AutoConfig

        return AutoConfig.for_model(**self.sizes)  # type: ignore[no-any-return]


@cache
def cards() -> dict[str, Card]:
    """All cards by name."""
    return {file.stem: _read(file) for file in sorted(FOLDER.glob("*.yaml"))}


def card_named(name: str) -> Card:
    """The card of that name, or the one that a YAML file holds.

    Raises:
        ConfigError: If there is none, or the file is no card.
    """
    if name.endswith((".yaml", ".yml")):
        return _read(Path(name).expanduser())
    check_choice(name, cards(), "--architecture")
    return cards()[name]


def card_of(place: str) -> Card | None:
    """The card of a hub repository, or of a folder that the shipped configurations name."""
    folder = PurePath(place).as_posix()
    return next((card for card in cards().values() if place in card.repositories or folder in card.folders), None)


def _read(file: Path) -> Card:
    try:
        given = yaml.safe_load(file.read_text(encoding="utf-8"))
        sizes = dict(given["config"])
        lists = [tuple(given.get(key, ())) for key in ("repositories", "folders")]
        if "model_type" not in sizes:
            raise KeyError("config.model_type")
    except (OSError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(
            f"--architecture: {file} is no architecture card ({error}). It needs: config: {{model_type: glm4, "
            "hidden_size: …}, the arguments of the model's transformers configuration"
        ) from error
    return Card(file.stem, lists[0], lists[1], sizes, str(given.get("assumption", f"as stated in {file}")))
