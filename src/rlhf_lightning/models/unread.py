"""A model that is not on this machine, known by its place alone: enough to plan with where its sizes are stated."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from rlhf_lightning.errors import ModelSourceError
from rlhf_lightning.models.sources import DType, Folder
from rlhf_lightning.protocols import ModelSource

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class Unread(ModelSource):
    """Stands in for a source whose files are missing.

    Args:
        place: Folder or repository.
        dtype: Type that its weights would be loaded in.
    """

    def __init__(self, place: str, dtype: DType = "float32") -> None:
        self._place, self.dtype = place, dtype

    @property
    def place(self) -> str:
        """Folder or repository."""
        return self._place

    def config_at_hand(self) -> PretrainedConfig | None:
        """Nothing is."""
        return None

    def config(self) -> NoReturn:
        """There is none.

        Raises:
            ModelSourceError: Always.
        """
        raise ModelSourceError(f"{self._place} is not on this machine")

    def tokenizer(self) -> NoReturn:
        """As :meth:`config`."""
        self.config()

    def load(self) -> NoReturn:
        """As :meth:`config`."""
        self.config()

    def identity(self) -> str:
        """The place."""
        return f"unread {self._place}"


def at_place(path: str, dtype: DType) -> ModelSource:
    """The model folder at a path; one that is not there yet as :class:`Unread`."""
    return Folder(path, dtype) if (Path(path).expanduser() / "config.json").is_file() else Unread(path, dtype)
