"""Whether two programs mean the same text by the same token."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rlhf_lightning.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Vocabulary:
    """What trainer and sampler must agree on.

    Attributes:
        tokens: Number of tokens that the tokenizer knows.
        rows: Number of logits that the model gives; often a few more.
        digest: SHA-256 of the tokens with their numbers, shortened.
    """

    tokens: int
    rows: int
    digest: str

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def vocabulary_of(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> Vocabulary:
    """The vocabulary of a tokenizer and the architecture it goes with."""
    tokens = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    digest = hashlib.sha256(json.dumps(tokens).encode()).hexdigest()[:16]
    return Vocabulary(len(tokens), int(config.get_text_config().vocab_size), digest)


def check_same(trainer: Vocabulary, sampler: Mapping[str, Any], where: str) -> None:
    """Makes sure that a sampler's vocabulary is the trainer's.

    Args:
        trainer: The trainer's.
        sampler: The sampler's, as :meth:`Vocabulary.plain` gives it.
        where: What the sampler is, for the message.

    Raises:
        ConfigError: Naming what differs.
    """
    for name, meaning in (("rows", "logits"), ("tokens", "tokens"), ("digest", "as digest of the tokens")):
        here, there = getattr(trainer, name), sampler.get(name)
        if here != there:
            raise ConfigError(
                f"{where} has another vocabulary than the policy: {there} {meaning}, the policy has {here}. "
                "Both must be of the same model family, with the same tokenizer files"
            )
