"""One way to write a mathematical answer, of the many in LaTeX and plain text."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

from rlhf_lightning.data.tasks.math_text import BOX, group_end

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_SIGNS = {
    "−": "-", "–": "-", "‐": "-", "‑": "-", "﹣": "-", "－": "-", "＋": "+", "＝": "=", "×": r"\times ", "·": r"\cdot ",
    "⋅": r"\cdot ", "∙": r"\cdot ", "÷": "/", "⁄": "/", "∕": "/", "π": r"\pi ", "θ": r"\theta ", "α": r"\alpha ",
    "β": r"\beta ", "λ": r"\lambda ", "φ": r"\phi ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "⩽": r"\le ",
    "⩾": r"\ge ", "≠": r"\ne ", "±": r"\pm ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "°": "", "º": "",
    "％": "%", "，": ",", "；": ";", "：": ":", "（": "(", "）": ")", "∅": r"\emptyset ", "≈": r"\approx ",
    "⟨": "(", "⟩": ")", "\u00a0": " ", "\u2009": r"\,", "\u202f": r"\,", "’": "'", "€": "",
    "£": "", "′": "'", "∛": r"\sqrt[3]", "∜": r"\sqrt[4]", "∖": r"\setminus ", "ℝ": r"\mathbb{R}",
}  # fmt: skip
_COMMANDS = {
    "dfrac": r"\frac", "tfrac": r"\frac", "cfrac": r"\frac", "leq": r"\le ", "geq": r"\ge ", "leqslant": r"\le ",
    "geqslant": r"\ge ", "neq": r"\ne ", "lt": "<", "gt": ">", "le": r"\le ", "ge": r"\ge ", "div": "/", "degree": "",
    "lvert": "|", "rvert": "|", "vert": "|", "mid": "|", "lbrace": r"\{", "rbrace": r"\}", "langle": "(", "rangle": ")",
    "left": "", "right": "", "big": "", "Big": "", "bigg": "", "Bigg": "", "bigl": "", "bigr": "", "Bigl": "",
    "Bigr": "", "displaystyle": "", "textstyle": "", "limits": "", "quad": " ", "qquad": " ", "thinspace": "",
    "ast": "*", "textbf": r"\text", "textit": r"\text", "textrm": r"\text", "textnormal": r"\text", "mbox": r"\text",
    "hbox": r"\text", "lbrack": "[", "rbrack": "]", "colon": ":", "cdotp": r"\cdot ", "infin": r"\infty ",
    "arctan": r"\arctan ", "varnothing": r"\emptyset ", "dots": "...", "ldots": "...", "hline": "", "large": "",
    "Large": "", "LARGE": "", "huge": "", "small": "", "bf": "", "bfseries": "", "prime": "'", "dbinom": r"\binom",
    "tbinom": r"\binom", "backslash": r"\setminus ",
}  # fmt: skip
_TAKERS = re.compile(r"\\(frac|sqrt|binom)(?![a-zA-Z])")
_NUMERALS = {
    "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10, "twelve": 12,
    "sixteen": 16,
}  # fmt: skip
_REWRITTEN: list[tuple[re.Pattern[str], Any]] = [
    (re.compile(pattern), plain)
    for pattern, plain in [
        (r"\\(?:text)?color\s*\{[^{}]*\}", ""),
        (r"^\{([^{},]*)\}$", r"\1"),
        (r"\^\s*(?:\{\s*('+)\s*\}|('+))", r"\1\2"),
        (r"(?<=\d)\s*[xX]\s*(?=10\s*(?:\^|\*\*))", r"\\times "),
        (r"^(?:USD|EUR|GBP|US)\s*(?=\d)", ""),
        (r"(?i)^(?:negative|minus)\s+", "-"),
        (r"⟦\s*⟧", r"\\emptyset "),
        (r"(?<=\d)\s*:\s*(?=\d)", ":"),
        (r"(?i)(?<=:\d\d)\s*(?:\\text\s*\{\s*)?([ap])\.?\s?m\b\.?\s*\}?", lambda m: f" {m.group(1).lower()}m"),
        (r"(?<=\d)\s*\\text\s*\{\s*(days?|hours?|minutes?)\s*\}\s*(?=[\d,a])", r" \1 "),
        (r"(?<=\d )(days?|hours?|minutes?)\s*(?:,|and\b)\s*(?:and\b)?\s*(?=\d)", r"\1 "),
        (r"^\\text\s*\{\s*([A-H](?:\s*(?:,|\band\b)\s*[A-H])+)\s*\}$", r"\1"),
        (r"(?:\{|^)\s*([^{}]*?)\s*\\choose\s*([^{}]*?)\s*(?:\}|$)", r"\\binom{\1}{\2}"),
        (r"\\log_(?:e|\{e\})(?![a-zA-Z])", r"\\ln "),
        (r"([\])])\s*U\s*(?=[\[(])", r"\1\\cup "),
        (r"\s*(?:\\text)?\s*[{(]+\s*\(?base[ -](\d+|[a-z]+)\)?\s*[})]+$", r"_{\1}"),
        (
            r"(?<=\d)(\)?)_\{?\s*(?:\\text\s*\{)?\s*([a-z]{3,8})\s*\}{1,2}$",
            lambda m: f"{m.group(1)}_{{{_NUMERALS.get(m.group(2), m.group(2))}}}",
        ),
    ]
]
"""Other ways to write the same, each with the one that is compared."""


def clean(text: str) -> str:
    r"""The same mathematics, written in one way: without wrappers, spacing, sizes, degrees and currency signs.

    ``$\dfrac43\,^\circ$.`` becomes ``\frac{4}{3}``; ``10{,}000``, ``10,\!000``, ``10\,000`` and ``10,000`` become
    ``10000``; set braces become ``⟦⟧``.
    """
    text = re.sub(
        r"\b(sin|cos|tan|cot|sec|csc)(\s*\(?\s*)(\d+(?:\.\d+)?)\s*(?:°|\^\s*\{?\s*\\circ\s*\}?)", _in_radians, text
    )
    text = "".join(_SIGNS.get(sign) or _fraction(sign) if sign not in ("°", "º", "€", "£") else "" for sign in text)
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
    text = re.sub(r"\\[,;:!]|\\ |~", " ", re.sub(r"⏎\s*\[[\d.]+\s*[a-z]{2}\]", "⏎", text)).strip()
    for pattern, plain in _REWRITTEN:
        text = pattern.sub(plain, text)
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


def check_readable(text: str) -> None:
    """Looks whether a reference can be compared with at all.

    Raises:
        ValueError: If nothing is left of it, its braces don't balance, or no expression can be read in it.
    """
    cleaned = clean(text)
    try:
        depth = 0
        for sign in cleaned:
            depth += {"{": 1, "}": -1}.get(sign, 0)
            if depth < 0:
                break
        if not re.search(r"[\w\\∅]", cleaned) or depth != 0 or r"\frac{}" in cleaned or r"\sqrt{}" in cleaned:
            raise ValueError
    except ValueError:
        raise ValueError(f"the reference answer {text!r} cannot be read as mathematics or words") from None


def _unwrapped(text: str) -> str:
    while True:
        before = text
        text = text.strip().rstrip("?。").strip()
        text = text[:-1].rstrip() if text.endswith((".", ",", ";", ":")) and not text.endswith("\\,") else text
        for opening, closing in (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("`", "`")):
            inner = text[len(opening) : len(text) - len(closing)]
            if text.startswith(opening) and text.endswith(closing) and inner and not inner.endswith("\\"):
                text = inner if opening.rstrip("$") or not re.search(r"(?<!\\)\$", inner) else text
        box = BOX.match(text)
        if box and text[box.end() : box.end() + 1] == "{" and group_end(text, box.end()) == len(text):
            text = text[box.end() + 1 : -1]
        if text == before:
            return text


def _fraction(sign: str) -> str:
    """``½`` and the like in LaTeX; other signs as they are."""
    parts = unicodedata.normalize("NFKC", sign).split("⁄")
    return rf"\frac{{{parts[0]}}}{{{parts[1]}}}" if len(parts) == 2 and all(parts) else sign


def _in_radians(match: re.Match[str]) -> str:
    name, gap, angle = match.groups()
    value = rf"\frac{{{angle}\pi}}{{180}}"
    return f"{name}{gap}{value}" if "(" in gap else f"{name}({value})"


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
        for _ in range(1 if match.group(1) == "sqrt" else 2):
            argument, position = _argument(text, position)
            made += f"{{{_with_arguments(argument)}}}"
    return made + text[position:]


def _argument(text: str, position: int) -> tuple[str, int]:
    while text[position : position + 1].isspace():
        position += 1
    if text[position : position + 1] == "{" and (end := group_end(text, position)):
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
