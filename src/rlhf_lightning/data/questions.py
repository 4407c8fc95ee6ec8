"""Which question a judged group asks: the same one in two sources, or two rows, has the same number."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from rlhf_lightning.data.rows import question_key
from rlhf_lightning.types import Problem


def question_number(problem: Problem) -> int:
    """A 63-bit number of the question, whatever its white space.

    A conversation (``metadata["messages"]``) counts with all its turns; one of a single user's turn is the same as that
    turn's text.

    Args:
        problem: What is asked.
    """
    turns = problem.metadata.get("messages")
    text = conversation_text(turns) if turns else problem.question
    digest = hashlib.blake2b(question_key(text).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def conversation_text(turns: Sequence[Mapping[str, str]]) -> str:
    """The turns as one text; a single turn of the user is its content alone."""
    if len(turns) == 1 and turns[0]["role"] == "user":
        return turns[0]["content"]
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)
