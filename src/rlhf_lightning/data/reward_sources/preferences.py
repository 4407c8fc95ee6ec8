"""Pairs of a chosen and a rejected response: HH-RLHF, UltraFeedback-binarized, and plain rows."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rlhf_lightning.data.reward_sources._files import FileSource
from rlhf_lightning.data.rows import Field
from rlhf_lightning.errors import ConfigError, DataError
from rlhf_lightning.registry import check_choice, register
from rlhf_lightning.reward_types import JudgedGroup, JudgedResponse, Pair
from rlhf_lightning.types import Problem

SCORES = ("score_chosen", "score_rejected")
"""Fields of the two responses' scores, as UltraFeedback-binarized has them."""

Turns = list[dict[str, str]]

_SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


@dataclass(frozen=True)
class Names:
    """Fields of a row.

    Attributes:
        prompt: Of the prompt; None is ``messages`` in rows that have it, else ``prompt``.
        chosen: Of the better response.
        rejected: Of the other.
    """

    prompt: str | None = None
    chosen: str = "chosen"
    rejected: str = "rejected"


@dataclass(frozen=True)
class Compared:
    """What a row compares.

    Attributes:
        problem: What was asked.
        chosen: The better response.
        rejected: The other.
    """

    problem: Problem
    chosen: str
    rejected: str


def plain(fields: Field, chat: bool, names: Names) -> Compared:
    """``prompt`` (text or turns) or ``messages`` (turns), ``chosen`` and ``rejected`` (text, or turns).

    Turns of ``chosen`` and ``rejected`` end with the assistant's that is compared; those before it, if any, are the
    prompt, whatever else the row has, and must be the same in both.
    """
    better, worse = fields.at(names.chosen), fields.at(names.rejected)
    (ahead, chosen), (other, rejected) = better.answer(), worse.answer()
    if ahead != other:
        worse.refuse(f"the same turns as {better.path!r}, but for the last one")
    if ahead:
        return Compared(_conversation(fields, ahead, chat), chosen, rejected)
    prompt = fields.at(names.prompt) if names.prompt else fields.get("messages") or fields["prompt"]
    if isinstance(prompt.value, list | Mapping):
        return Compared(_conversation(fields, prompt.turns(), chat), chosen, rejected)
    metadata = {"place": fields.row.place}
    return Compared(Problem(fields.row.id, prompt.text(), metadata=metadata), chosen, rejected)


def ultrafeedback(fields: Field, chat: bool, names: Names) -> Compared:
    """UltraFeedback-binarized: ``prompt_id`` (may be missing), and ``chosen`` and ``rejected`` as whole conversations.

    Its ``prompt`` is the user's first turn, which the conversations hold too; its ``messages`` is ``chosen`` again.
    Fields: https://huggingface.co/datasets/HuggingFaceH4/ultrafeedback_binarized.
    """
    better, worse = fields.at(names.chosen), fields.at(names.rejected)
    (ahead, chosen), (other, rejected) = better.answer(), worse.answer()
    if not ahead:
        better.refuse("a conversation of at least two turns")
    if ahead != other:
        worse.refuse(f"the same turns as {better.path!r}, but for the last one")
    id = fields.get("prompt_id")
    return Compared(_conversation(fields, ahead, chat, None if id is None else id.text()), chosen, rejected)


def hh(fields: Field, chat: bool, names: Names) -> Compared:
    r"""HH-RLHF: two whole dialogues, ``\n\nHuman: …\n\nAssistant: …``, the same but for the assistant's last words.

    As plain text, the prompt goes up to the last ``Assistant:`` and the response is what follows, blank included. In a
    chat, each is a turn, without the blanks around it. Fields: https://huggingface.co/datasets/Anthropic/hh-rlhf.
    """
    better, worse = fields.at(names.chosen), fields.at(names.rejected)
    (turns, question, chosen), (others, _, rejected) = _dialogue(better), _dialogue(worse)
    if turns != others:
        worse.refuse(f"the same dialogue as {better.path!r}, but for the assistant's last words")
    if chat:
        return Compared(_conversation(fields, turns, chat), chosen.strip(), rejected.strip())
    metadata = {"place": fields.row.place, "messages": turns}
    return Compared(Problem(fields.row.id, question, metadata=metadata), chosen, rejected)


PRESETS: dict[str, Callable[[Field, bool, Names], Compared]] = {
    "plain": plain,
    "hh": hh,
    "ultrafeedback": ultrafeedback,
}
"""How rows are read, by data set."""


@register("reward_data", "preferences")
class Preferences(FileSource):
    """Preference pairs, one a row.

    A pair whose two scores are the same is a tie: nobody preferred either, so it teaches nothing but noise. Ties are
    left out and counted, unless they are wanted.

    Args:
        path: A file, a folder, a pattern (``part-*.parquet``), a data set of the hub, or a list of those, as
            :class:`FileSource`.
        preset: Format of the rows: ``plain``, ``hh`` or ``ultrafeedback``.
        label: What the groups count as; ``preferences`` when not given.
        margin_field: Field of the margin by which the chosen response must win, from 0 on. When not given: ``margin``
            in rows that have it.
        score_margin: The margin instead: so many times ``score_chosen − score_rejected``. 0 is no such margin.
        on_bad_row: ``error`` or ``skip``, as :class:`FileSource`.
        prompt_fraction: Share of the questions to use, as :class:`FileSource`.
        seed: Of that share.
        subset, split, cache_dir: As :class:`FileSource`.
        prompt_field: Field of the prompt, text or turns; ``messages`` or else ``prompt`` when not given.
        chosen_field: Field of the better response.
        rejected_field: Field of the other.
        score_fields: Fields of the two responses' scores, in rows that have them: the better one's first.
        keep_ties: Whether pairs with equal scores are pairs all the same, the first response preferred.

    Raises:
        ConfigError: If a value is out of range, or there would be two margins.
    """

    name = "preferences"

    def __init__(
        self,
        path: str | list[str],
        preset: str = "plain",
        label: str | None = None,
        margin_field: str | None = None,
        score_margin: float = 0.0,
        on_bad_row: str = "error",
        prompt_fraction: float = 1.0,
        seed: int = 0,
        subset: str | None = None,
        split: str | None = None,
        cache_dir: str | None = None,
        prompt_field: str | None = None,
        chosen_field: str = "chosen",
        rejected_field: str = "rejected",
        score_fields: tuple[str, str] = SCORES,
        keep_ties: bool = False,
    ) -> None:
        super().__init__(path, label, on_bad_row, None, prompt_fraction, seed, subset, split, cache_dir)
        check_choice(preset, PRESETS, f"reward data {self.name}: preset")
        if score_margin < 0:
            raise ConfigError(f"reward data {self.name}: score_margin must be at least 0, got {score_margin}")
        if score_margin and margin_field is not None:
            raise ConfigError(f"reward data {self.name}: give margin_field or score_margin, not both")
        self.preset, self.margin_field, self.score_margin = preset, margin_field, score_margin
        self.names, self.score_fields = Names(prompt_field, chosen_field, rejected_field), tuple(score_fields)
        self.keep_ties = keep_ties

    def parse(self, fields: Field) -> JudgedGroup | str:
        """One pair: the chosen response first."""
        compared = PRESETS[self.preset](fields, self.chat, self.names)
        if not self.keep_ties and self._tied(fields):
            return "ties left out"
        if compared.chosen == compared.rejected:
            fields.at(self.names.rejected).refuse(f"another response than {self.names.chosen!r}")
        pair = Pair(0, 1, self._margin(fields))
        responses = (JudgedResponse(compared.chosen), JudgedResponse(compared.rejected))
        return JudgedGroup(compared.problem, self.label, responses, (pair,))

    def _tied(self, fields: Field) -> bool:
        if self.score_fields == SCORES and not all(fields.get(name) for name in SCORES):
            return False
        better, worse = (fields.at(name) for name in self.score_fields)
        return None not in (better.value, worse.value) and better.number() == worse.number()

    def _margin(self, fields: Field) -> float:
        if self.score_margin:
            better, worse = (fields.at(name).number() for name in self.score_fields)
            if better < worse:
                fields.at(self.score_fields[0]).refuse(f"at least {self.score_fields[1]} ({worse})")
            return self.score_margin * (better - worse)
        field = fields.get("margin") if self.margin_field is None else fields[self.margin_field]
        if field is None:
            return 0.0
        margin = field.number("a number from 0 on")
        return margin if margin >= 0 else field.refuse("a number from 0 on")


def _conversation(fields: Field, turns: Turns, chat: bool, id: str | None = None) -> Problem:
    alone = len(turns) == 1 and turns[0]["role"] == "user"
    if not chat and not alone:
        raise DataError(
            f"{fields.row.place}: the prompt is a conversation of {len(turns)} turns, but plain prompts are one text; "
            "set data's chat: true"
        )
    question = next((turn["content"] for turn in reversed(turns) if turn["role"] == "user"), "")
    return Problem(id or fields.row.id, question, metadata={"place": fields.row.place, "messages": turns})


def _dialogue(field: Field) -> tuple[Turns, str, str]:
    """The turns of the prompt, its text, and the assistant's last words as they stand."""
    text = field.text()
    begins, *parts = _SPEAKER.split(text)
    speakers, said = parts[::2], parts[1::2]
    if begins.strip() or len(speakers) < 2 or speakers[0] != "Human" or speakers[-1] != "Assistant":
        field.refuse(r"a dialogue '\n\nHuman: …\n\nAssistant: …' that the assistant ends")
    turns = [{"role": _ROLES[s], "content": words.strip()} for s, words in zip(speakers[:-1], said[:-1], strict=True)]
    return turns, text[: len(text) - len(said[-1])], said[-1]
