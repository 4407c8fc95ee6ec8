"""Which question a judged group asks: the same one in two sources, or two rows, has the same number."""

from __future__ import annotations

import hashlib

from rlhf_lightning.data.rows import question_key
from rlhf_lightning.types import Problem


def question_number(problem: Problem) -> int:
    """A 63-bit number of the question, whatever its white space.

    A conversation (``metadata["messages"]``) counts with all its turns; one of a single user's turn is the same as that
    turn's text.

    Args:
        problem: What is asked.
    """
    text = problem.whole_question
    digest = hashlib.blake2b(question_key(text).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
