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
    return tuple(end for _, end in _spans(text, delimiter))


def step_starts(text: str, delimiter: str = "\n") -> tuple[int, ...]:
    """Where each step begins: behind the delimiter before it; ``"22+12⏎=34"`` gives ``(0, 6)``.

    Raises:
        ValueError: If the delimiter is empty.
    """
    return tuple(start for start, _ in _spans(text, delimiter))


def _spans(text: str, delimiter: str) -> list[tuple[int, int]]:
    if not delimiter:
        raise ValueError("the delimiter between steps must not be empty")
    spans, start = [], 0
    for part in text.split(delimiter):
        if part.strip():
            spans.append((start, start + len(part.rstrip())))
        start += len(part) + len(delimiter)
    return spans
