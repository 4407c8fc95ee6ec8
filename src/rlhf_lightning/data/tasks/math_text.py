r"""Where the answer of a response stands: in a box, in dollars, bare, in a sentence, or on the last line."""

from __future__ import annotations

import re
from collections.abc import Iterator

FUNCTIONS = r"sin|cos|tan|cot|sec|csc|log|ln|exp|mod|bmod|pmod|gcd|lcm|max|min|det|arcsin|arccos|arctan"
"""Names that are no words and no variables."""
BOX = re.compile(r"\\(?:(?:boxed|fbox|framebox)(?![a-zA-Z])|bbox(?:\[[^\]]*\])?(?=\s*\{))\s*")
_JOINS = re.compile(r"(?:\\[()\[\], ;!]|[$\s,;*.&]|\b(?:and|or)\b|\\text\s*\{\s*(?:,?\s*(?:and|or))?\s*\}|\\quad)*")
_MARK = re.compile(
    r"(?i)(?:\b(?:answers?|antwort|réponse|respuesta|resposta|risposta|ответ)\b[*_`\s]*"
    r"(?:(?:is|are|ist|lautet|est|es|é|è)\b\s*:?|[:：=]|[-–—](?=\s))|####|答案[是为:：]*|答え[は:：]*|(?:정답|답)[은:：]+)[*_`\s]*"
)
_MATH = re.compile(
    r"\$\$(?P<a>.+?)\$\$|\\\[(?P<b>.+?)\\\]|\\\((?P<c>.+?)\\\)"
    r"|(?<![\\$])\$(?=\S)(?P<d>(?:\\.|[^$\\])+?)(?<=\S)\$(?!\d)",
    re.DOTALL,
)
_BOLD = re.compile(r"(?<!\*)\*\*(?=\S)(.+?)(?<=\S)\*\*(?!\*)|(?<![\w_])__(?=\S)(.+?)(?<=\S)__(?![\w_])", re.DOTALL)
_LEADS = re.compile(
    r"(?is)^.*(?:\b(?:is|are|was|be|becomes?|equals?|gives?|yields?|choose|get|obtain|have|totals?)\b|:(?=\s))"
    r"\s*(?:exactly |therefore |simply |equal to |thus |an? |the )*"
)


def find_answer(response: str) -> str | None:
    r"""The text that a response gives as its answer; None where there is none.

    What stands last counts: the last box (``\boxed{4}``, ``\boxed 4``, ``\fbox{4}``; several joined by commas or "and"
    are one list), or what follows a later ``Answer:``, "the answer is" or ``####``. Without either, the last line: what
    is bold or in dollars in it, or stands behind its verb, or all of it. A box that is opened and never closed is no
    answer: the response was cut off in it. What was thought before ``</think>`` does not count, nor what follows a
    ``<think>`` that never closes; what stands in ``<answer>`` tags is all that does.
    """
    response = response.rpartition("</think>")[2]
    if "<think>" in response:
        return None
    if tagged := re.findall(r"<answer>(.*?)</answer>", response, re.DOTALL):
        response = tagged[-1]
    boxes = list(_boxes(response))
    marks = [m.end() for m in _MARK.finditer(response)]
    if boxes and boxes[-1][2] is None:
        return None
    if boxes and not (marks and marks[-1] > boxes[-1][1] and re.search(r"[\d\\$]", response[marks[-1] :])):
        return _joined(response, boxes)
    if marks:
        said = _said(response[marks[-1] :])
        return _within(said, sentence=False) if said else None
    lines = [part for part in re.split(r"\n\s*\n", response) if part.strip()]
    return _within(_last_line(lines[-1]), sentence=True) if lines else None


def last_boxed(text: str) -> str | None:
    r"""What the last box holds, with its inner braces balanced; None where there is none, or it never closes."""
    boxes = list(_boxes(text))
    return boxes[-1][2] if boxes else None


def _boxes(text: str) -> Iterator[tuple[int, int, str | None]]:
    """Start, end and content of each box that is in no other; the content of one that never closes is None."""
    position = 0
    while match := BOX.search(text, position):
        position = match.end()
        if text[position : position + 1] == "{":
            end = group_end(text, position)
            yield match.start(), end or len(text), None if end is None else text[position + 1 : end - 1].strip()
            position = end or len(text)
        elif bare := re.compile(r"[^\s$,;]+").match(text, position):
            position = bare.end()
            yield match.start(), position, bare.group().rstrip(".")


def group_end(text: str, start: int) -> int | None:
    """Where the group that opens at ``start`` ends; None if it does not."""
    depth = 0
    position = start
    while position < len(text):
        if text[position] == "\\":
            position += 2
            continue
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        position += 1
        if depth == 0:
            return position
    return None


def _joined(text: str, boxes: list[tuple[int, int, str | None]]) -> str:
    """The last box, with those before it that only a comma or an "and" parts from it."""
    held = [str(boxes[-1][2])]
    for before, after in zip(reversed(boxes[:-1]), reversed(boxes[1:]), strict=True):
        if before[2] is None or not _JOINS.fullmatch(text[before[1] : after[0]]):
            break
        held.insert(0, before[2])
    return ", ".join(dict.fromkeys(held))


def _said(text: str) -> str:
    """What follows a mark: the rest of its line, or the lines that its mathematics needs."""
    text = text.strip().lstrip(":= ").strip()
    math = _MATH.match(text)
    if math and "\n" in math.group():
        return text[: math.end()]
    lines = text.split("\n")
    taken = lines[0]
    for line in lines[1:]:
        if taken.count("\\begin") <= taken.count("\\end") and taken.count("{") <= taken.count("}"):
            break
        taken += "\n" + line
    return taken


def _last_line(paragraph: str) -> str:
    lines = paragraph.strip().split("\n")
    taken = lines[-1]
    for line in reversed(lines[:-1]):
        opened = taken.count("\\begin") < taken.count("\\end") or taken.count("{") < taken.count("}")
        if not opened and not taken.strip().startswith((r"\]", "$$")):
            break
        taken = line + "\n" + taken
    return taken


def _within(text: str, *, sentence: bool) -> str:
    """The part of a line that is the answer."""
    text = text.strip()
    text = re.sub(r"\*\*([.!]?)$", r"\1", text) if text.count("**") % 2 else text
    bold = [m.group(1) or m.group(2) for m in _BOLD.finditer(text)]
    if bold and (sentence or text.startswith(("**", "__"))) and not _MARK.fullmatch(bold[-1] + " "):
        text = re.sub(r"(?i)^(?:final )?answers?\s*[:=]\s*", "", bold[-1]).strip() or text
    found = list(_MATH.finditer(text))
    if found and (later := re.search(r"[a-zA-Z]\w*\s*=\s*[-+]?\d[^$]*$", text[found[-1].end() :])):
        return later.group()
    if found:
        taken = [found[-1]]
        for before in reversed(found[:-1]):
            if not _JOINS.fullmatch(text[before.end() : taken[0].start()]):
                break
            taken.insert(0, before)
        inner = ", ".join(next(g for g in m.groups() if g is not None).strip().rstrip(",.;") for m in taken)
        tail = re.match(r"\s*(%|\\%|percent\b|[a-zA-Z]+(?:\^\{?\d\}?)?)\s*[.!]?$", text[taken[-1].end() :])
        return f"{inner} {tail.group(1)}" if tail and len(taken) == 1 else inner
    lead = _LEADS.match(text)
    if lead and text[lead.end() :].strip(" .*"):
        return text[lead.end() :].strip()
    behind = (
        re.sub(rf"^(?:(?!(?:{FUNCTIONS})\b)[A-Za-z][a-z']+,? +)+(?=[-+\\$\d(\[]|[a-zA-Z]\b)", "", text)
        if sentence
        else text
    )
    return behind.strip()
