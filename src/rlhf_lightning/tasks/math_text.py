r"""Where the answer of a response stands, and one way to write it: in a box, in dollars or bare, in LaTeX or plain."""

from __future__ import annotations

import re
from collections.abc import Iterator

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_SIGNS = {
    "−": "-", "–": "-", "‐": "-", "‑": "-", "﹣": "-", "－": "-", "＋": "+", "＝": "=", "×": r"\times ", "·": r"\cdot ",
    "⋅": r"\cdot ", "∙": r"\cdot ", "÷": "/", "⁄": "/", "∕": "/", "π": r"\pi ", "θ": r"\theta ", "α": r"\alpha ",
    "β": r"\beta ", "λ": r"\lambda ", "φ": r"\phi ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "⩽": r"\le ",
    "⩾": r"\ge ", "≠": r"\ne ", "±": r"\pm ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "°": "", "º": "",
    "％": "%", "，": ",", "；": ";", "：": ":", "（": "(", "）": ")", "∅": r"\emptyset ", "≈": r"\approx ",
    "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}",
    "⅛": r"\frac{1}{8}", "⟨": "(", "⟩": ")", "\u00a0": " ", "\u2009": r"\,", "\u202f": r"\,", "’": "'", "€": "",
    "£": "",
}  # fmt: skip
_COMMANDS = {
    "dfrac": r"\frac", "tfrac": r"\frac", "cfrac": r"\frac", "leq": r"\le ", "geq": r"\ge ", "leqslant": r"\le ",
    "geqslant": r"\ge ", "neq": r"\ne ", "lt": "<", "gt": ">", "le": r"\le ", "ge": r"\ge ", "div": "/", "degree": "",
    "lvert": "|", "rvert": "|", "vert": "|", "mid": "|", "lbrace": r"\{", "rbrace": r"\}", "langle": "(", "rangle": ")",
    "left": "", "right": "", "big": "", "Big": "", "bigg": "", "Bigg": "", "bigl": "", "bigr": "", "Bigl": "",
    "Bigr": "", "displaystyle": "", "textstyle": "", "limits": "", "quad": " ", "qquad": " ", "thinspace": "",
    "ast": "*", "textbf": r"\text", "textit": r"\text", "textrm": r"\text", "textnormal": r"\text", "mbox": r"\text",
    "hbox": r"\text", "lbrack": "[", "rbrack": "]", "colon": ":", "cdotp": r"\cdot ", "infin": r"\infty ",
    "arctan": r"\arctan ", "varnothing": r"\emptyset ", "dots": "...", "ldots": "...", "hline": "",
}  # fmt: skip
_BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?![a-zA-Z])\s*")
_JOINS = re.compile(r"(?:\\[()\[\], ;!]|[$\s,;*.&]|\b(?:and|or)\b|\\text\s*\{\s*(?:,?\s*(?:and|or))?\s*\}|\\quad)*")
_MARK = re.compile(r"(?i)(?:\banswers?\b[*_`\s]*(?:(?:is|are)\b\s*:?|:|=)|####|答案[是为:：]*)[*_`\s]*")
_MATH = re.compile(
    r"\$\$(?P<a>.+?)\$\$|\\\[(?P<b>.+?)\\\]|\\\((?P<c>.+?)\\\)"
    r"|(?<![\\$])\$(?=\S)(?P<d>(?:\\.|[^$\\])+?)(?<=\S)\$(?!\d)",
    re.DOTALL,
)
_BOLD = re.compile(r"(?<!\*)\*\*(?=\S)(.+?)(?<=\S)\*\*(?!\*)|(?<![\w_])__(?=\S)(.+?)(?<=\S)__(?![\w_])", re.DOTALL)
FUNCTIONS = r"sin|cos|tan|cot|sec|csc|log|ln|exp|mod|bmod|pmod|gcd|lcm|max|min|det|arcsin|arccos|arctan"
"""Names that are no words and no variables."""
_TAKERS = re.compile(r"\\(frac|sqrt)(?![a-zA-Z])")
_LEADS = re.compile(
    r"(?is)^.*(?:\b(?:is|are|was|be|becomes?|equals?|gives?|yields?|get|obtain|have|totals?)\b|:(?=\s))"
    r"\s*(?:exactly |therefore |simply |equal to |thus |an? |the )*"
)


def find_answer(response: str) -> str | None:
    r"""The text that a response gives as its answer; None where there is none.

    What stands last counts: the last box (``\boxed{4}``, ``\boxed 4``, ``\fbox{4}``; several joined by commas or "and"
    are one list), or what follows a later ``Answer:``, "the answer is" or ``####``. Without either, the last line: what
    is bold or in dollars in it, or stands behind its verb, or all of it. A box that is opened and never closed is no
    answer: the response was cut off in it. What was thought before ``</think>`` does not count, and what stands in
    ``<answer>`` tags is all that does.
    """
    response = response.rpartition("</think>")[2]
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
    while match := _BOX.search(text, position):
        position = match.end()
        if text[position : position + 1] == "{":
            end = _closing(text, position)
            yield match.start(), end or len(text), None if end is None else text[position + 1 : end - 1].strip()
            position = end or len(text)
        elif bare := re.compile(r"[^\s$,;]+").match(text, position):
            position = bare.end()
            yield match.start(), position, bare.group().rstrip(".")


def _closing(text: str, start: int) -> int | None:
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


def clean(text: str) -> str:
    r"""The same mathematics, written in one way: without wrappers, spacing, sizes, degrees and currency signs.

    ``$\dfrac43\,^\circ$.`` becomes ``\frac{4}{3}``; ``10{,}000``, ``10,\!000``, ``10\,000`` and ``10,000`` become
    ``10000``; set braces become ``⟦⟧``.
    """
    text = "".join(_SIGNS.get(sign, sign) for sign in text)
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+", lambda m: f"^{{{m.group().translate(_SUPERSCRIPTS)}}}", text)
    text = _unwrapped(text).replace(r"\\", "⏎")
    text = re.sub(r"(?<=\d)\s*(?:\{,\}|,\\!|\\,|,\\,)\s*(?=\d{3}(?!\d))", "", text)
    text = re.sub(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ)|\\circ(?![a-z])", "", text)
    text = re.sub(
        r"\\(?:mathrm|mathbf|mathit|mathsf|boldsymbol|bm|operatorname\*?|vec|overrightarrow)\s*(?=\{)", r"\\plain", text
    )
    text = re.sub(r"\\([a-zA-Z]+)(?:\s+(?=[a-zA-Z]))?", _command, text)
    text = text.replace(r"\{", "⟦").replace(r"\}", "⟧").replace(r"\%", "%").replace(r"\$", "").replace("$", "")
    text = re.sub(r"\\plain\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\\[,;:!]|\\ |~", " ", text)
    text = re.sub(r"√\s*(\d+(?:\.\d+)?|[a-zA-Z])", r"\\sqrt{\1}", text).replace("√", r"\sqrt")
    text = re.sub(r"(?<![\\a-zA-Z])(sqrt|pi|infty|infinity|inf|oo)(?![a-z])", _word, text)
    text = re.sub(r"\^\s*(-?\d+|\([^()]*\))", lambda m: f"^{{{m.group(1).strip('()')}}}", text.replace("**", "^"))
    text = re.sub(r"(?<=\s)!=|\\not\s*=", r"\\ne ", text)
    text = text.replace("<=", r"\le ").replace(">=", r"\ge ").replace("+/-", r"\pm ")
    text = re.sub(r"\s*\*\s*", r"\\cdot ", text) if re.search(r"[\w)}]\s*\*\s*[\w(\\]", text) else text
    text = _joined_digits(_with_arguments(text))
    text = re.sub(r"^\s*(?:\\approx|about |approximately |roughly )\s*", "", text)
    text = re.sub(r"^\{([^{}]*,[^{}]*)\}$", r"⟦\1⟧", text.strip())
    text = re.sub(r"(?<=\d)\s+\([a-z]{2,}(?:[ -][a-z]+)*\)$", "", text)
    return re.sub(r"\s+", " ", re.sub(r"\^\{(\w)\}", r"^\1", text)).strip()


def _unwrapped(text: str) -> str:
    while True:
        before = text
        text = text.strip().rstrip("?。").strip()
        text = text[:-1].rstrip() if text.endswith((".", ",", ";", ":")) and not text.endswith("\\,") else text
        for opening, closing in (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("`", "`")):
            inner = text[len(opening) : len(text) - len(closing)]
            if text.startswith(opening) and text.endswith(closing) and inner and not inner.endswith("\\"):
                text = inner if opening.rstrip("$") or not re.search(r"(?<!\\)\$", inner) else text
        box = _BOX.match(text)
        if box and text[box.end() : box.end() + 1] == "{" and _closing(text, box.end()) == len(text):
            text = text[box.end() + 1 : -1]
        if text == before:
            return text


def _command(match: re.Match[str]) -> str:
    name = match.group(1)
    gap = " " if match.group().endswith((" ", "\n", "\t")) else ""
    return _COMMANDS[name] + gap if name in _COMMANDS else f"\\{name}{gap}"


def _word(match: re.Match[str]) -> str:
    return {"sqrt": r"\sqrt", "pi": r"\pi "}.get(match.group(1), r"\infty ")


def _with_arguments(text: str) -> str:
    r"""Braces around the arguments of fractions and roots: ``\frac43``, ``\sqrt2``, ``\sqrt(2)``."""
    made, position = "", 0
    while match := _TAKERS.search(text, position):
        made += text[position : match.end()]
        position = match.end()
        if match.group(1) == "sqrt" and (root := re.compile(r"\s*\[[^\]]*\]").match(text, position)):
            made, position = made + root.group().strip(), root.end()
        for _ in range(2 if match.group(1) == "frac" else 1):
            argument, position = _argument(text, position)
            made += f"{{{_with_arguments(argument)}}}"
    return made + text[position:]


def _argument(text: str, position: int) -> tuple[str, int]:
    while text[position : position + 1].isspace():
        position += 1
    if text[position : position + 1] == "{" and (end := _closing(text, position)):
        return text[position + 1 : end - 1], end
    if text[position : position + 1] == "(" and ")" in text[position:]:
        depth = 0
        for end in range(position, len(text)):
            depth += {"(": 1, ")": -1}.get(text[end], 0)
            if depth == 0:
                return text[position + 1 : end], end + 1
    command = re.compile(r"\\[a-zA-Z]+|.", re.DOTALL).match(text, position)
    return (command.group(), command.end()) if command else ("", position)


def _joined_digits(text: str) -> str:
    """``1,234`` as one number, unless it stands in brackets, where it is two; and ``10 000`` alone."""
    if re.fullmatch(r"[-+]?\d{1,3}(?: \d{3})+(?:\.\d+)?", text.strip()):
        return text.replace(" ", "")
    depth, made, position = 0, "", 0
    number = re.compile(r"(?<![\d.,])\d{1,3}(?:,\s?\d{3})+(?![\d])|(?<![\d.,])\d{1,3}(?:,\d{3})+(?!\d)")
    while position < len(text):
        match = number.match(text, position) if depth == 0 else None
        if match and " " not in match.group():
            made, position = made + match.group().replace(",", ""), match.end()
            continue
        depth += {"(": 1, "[": 1, "⟦": 1, ")": -1, "]": -1, "⟧": -1}.get(text[position], 0)
        made, position = made + text[position], position + 1
    return made
