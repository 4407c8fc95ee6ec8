"""How long a sequence may be: what a model's configuration says, or who gives the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.protocols import ModelSource

if TYPE_CHECKING:
    from transformers import PretrainedConfig

LENGTHS = (
    *("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "n_ctx"),
    *("seq_length", "model_max_length", "max_target_positions"),
)
"""What families of models call the longest sequence they were made for."""


def longest_sequence(config: PretrainedConfig) -> int | None:
    """The longest sequence that a configuration names, by whatever name; None where it names none."""
    text = config.get_text_config()
    found = (getattr(text, name, None) for name in LENGTHS)
    return next((length for length in found if isinstance(length, int) and length > 0), None)


def context_length(source: ModelSource) -> int:
    """Most tokens of prompt and response together.

    Raises:
        ConfigError: If neither the model's configuration nor the source says.
    """
    length = getattr(source, "context_length", None) or longest_sequence(source.config())
    if length is None:
        raise ConfigError(
            f"{source.place}: its configuration names no longest sequence ({', '.join(LENGTHS[:3])}, ...). Give the "
            "model source context_length, the most tokens that prompt and response together may have"
        )
    return int(length)


def positive_length(length: int | None) -> int | None:
    """A ``context_length`` as it was given.

    Raises:
        ConfigError: If it is below 1.
    """
    if length is not None and length < 1:
        raise ConfigError(f"context_length must be at least 1, got {length}")
    return length
