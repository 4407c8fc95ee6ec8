"""Where the reasoning steps of a response end."""

from __future__ import annotations


def step_ends(text: str, delimiter: str = "\n") -> tuple[int, ...]:
    """How many characters stand up to each step's end, delimiters left out; ``"22+12⏎=34"`` gives ``(5, 9)``.

    Parts of nothing but white space are no steps. A text without any part has no step.

    Args:
        text: The response.
        delimiter: What stands between two steps; never empty.

    Raises:
        ValueError: If the delimiter is empty.
    """
    if not delimiter:
        raise ValueError("the delimiter between steps must not be empty")
    ends, start = [], 0
    for part in text.split(delimiter):
        if part.strip():
            ends.append(start + len(part.rstrip()))
        start += len(part) + len(delimiter)
    return tuple(ends)
