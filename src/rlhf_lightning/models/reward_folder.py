"""A trained reward model as a folder: a Hugging Face sequence classifier with a card that says how to ask it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from rlhf_lightning.errors import ModelSourceError
from rlhf_lightning.models.scalar import scalar_class, scalar_head
from rlhf_lightning.models.sources import DType, Folder
from rlhf_lightning.protocols import ModelSource
from rlhf_lightning.registry import register

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CARD_FILE = "reward_model.json"


@dataclass(frozen=True)
class RewardCard:
    """How a reward model was trained, and so how it must be asked.

    Attributes:
        supervision: ``outcome`` (only the final score means anything) or ``process`` (each step's does too).
        delimiter: Text between the steps of a response.
        chat: Whether prompts go through the tokenizer's chat template.
        system: The chat's system turn.
        base: Identity of the model it was made from.
        tasks: Tasks it was trained on.
        end: What follows a response that ended: ``eos`` (the end-of-sequence token), ``turn`` (in a chat, the tokens
            with which the template ends a turn), or ``template`` (question and response are one conversation, put by
            the template from its beginning to its end, as models from elsewhere are trained).
        chat_template_kwargs: What else the chat template is told.
    """

    supervision: Literal["outcome", "process"] = "outcome"
    delimiter: str = "\n"
    chat: bool = False
    system: str | None = None
    base: str = ""
    tasks: tuple[str, ...] = ()
    end: Literal["eos", "turn", "template"] = "eos"
    chat_template_kwargs: Mapping[str, Any] | None = None

    def asked(self, *, chat: bool, system: str | None, chat_template_kwargs: Mapping[str, Any] | None) -> RewardCard:
        """The card of the same model asked otherwise.

        Args:
            chat: Through its chat template or not; as whole conversations where it was not trained so here.
            system: The system's turn, in place of the card's.
            chat_template_kwargs: In place of the card's.
        """
        card = self if chat == self.chat else replace(self, chat=chat, end="template" if chat else "eos")
        card = card if chat else replace(card, system=None, chat_template_kwargs=None)
        card = card if system is None else replace(card, system=system)
        return card if chat_template_kwargs is None else replace(card, chat_template_kwargs=chat_template_kwargs)


def save_reward_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, card: RewardCard, folder: Path
) -> None:
    """Writes weights (safetensors; adapters merged into a copy by the caller), tokenizer and card."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    text = json.dumps(asdict(card), indent=1, ensure_ascii=False)
    (folder / CARD_FILE).write_text(text + "\n", encoding="utf-8")


@register("model_source", "reward-model")
class RewardModelFolder(Folder):
    """A folder that :func:`save_reward_model` wrote, or any sequence classifier of one label.

    Args:
        path: The folder.
        dtype: Type the weights are loaded in.
        trust_remote_code: Whether model code that lies in the folder may run.
        context_length: Most tokens of prompt and response together, where ``config.json`` names none.

    Raises:
        ModelSourceError: If the folder, its weights or its head are missing.
    """

    def __init__(
        self,
        path: str,
        dtype: DType = "float32",
        trust_remote_code: bool = False,
        context_length: int | None = None,
    ) -> None:
        super().__init__(path, dtype, trust_remote_code, context_length=context_length)
        self.card = self._read_card()
        if not _has_head(self.path):
            raise ModelSourceError(
                f"{self.path} holds no reward model: its weights have no scalar head ('score.weight'). "
                "Train one with: rlhf fit --config tiny/orm.yaml"
            )

    @property
    def has_card(self) -> bool:
        """Whether the folder says how it was trained."""
        return (self.path / CARD_FILE).is_file()

    def load(self) -> PreTrainedModel:
        """Backbone and head, in evaluation mode; the head in float32 at least, whatever the backbone is."""
        trust = {"trust_remote_code": self.trust_remote_code} if self.trust_remote_code else {}
        model: PreTrainedModel = (
            scalar_class(self.config(), **trust)
            .from_pretrained(self.path, dtype=getattr(torch, self.dtype), num_labels=1, use_safetensors=True, **trust)
            .eval()
        )
        head = scalar_head(model)
        stored = self._head().to(torch.promote_types(head.weight.dtype, torch.float32))
        head.weight = torch.nn.Parameter(stored.to(head.weight.device))
        return model

    def identity(self) -> str:
        """The folder's, with the SHA-256 of the head: what begins alike (an embedding) may still score otherwise."""
        digest = hashlib.sha256(self._head().float().numpy().tobytes())
        return f"{super().identity()} head {digest.hexdigest()[:16]}"

    def _head(self) -> Tensor:
        from safetensors import safe_open

        file = next(file for file in sorted(self.path.glob("*.safetensors")) if "score.weight" in _names(file))
        with safe_open(file, "pt") as tensors:
            return tensors.get_tensor("score.weight")  # type: ignore[no-any-return]

    def _read_card(self) -> RewardCard:
        file = self.path / CARD_FILE
        if not file.is_file():
            return RewardCard()
        try:
            given: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ModelSourceError(f"{file} is not valid JSON: {error}") from error
        known = {field.name for field in fields(RewardCard)}
        if unknown := sorted(set(given) - known):
            raise ModelSourceError(f"{file}: unknown key {unknown[0]!r}. Known: {', '.join(sorted(known))}")
        return RewardCard(**given | {"tasks": tuple(given.get("tasks", ()))})


def with_head(source: ModelSource) -> ModelSource:
    """A plain folder that holds a reward model is read as one, so that its head is kept; other sources as they are."""
    if isinstance(source, Folder) and not isinstance(source, RewardModelFolder) and _has_head(source.path):
        return RewardModelFolder(
            str(source.path), source.dtype, source.trust_remote_code, context_length=source.context_length
        )
    return source


def _has_head(folder: Path) -> bool:
    return any("score.weight" in _names(file) for file in sorted(folder.glob("*.safetensors")))


def _names(file: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(file, "pt") as tensors:
        return list(tensors.keys())
