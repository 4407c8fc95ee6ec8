"""Units of quantities: which word stands for which, and ``m/s^2`` as the powers of its units."""

from __future__ import annotations

import re

from rlhf_lightning.tasks.math_text import FUNCTIONS

_UNITS = {
    "cm": "centimeter centimetre", "m": "meter metre", "mm": "millimeter millimetre", "km": "kilometer kilometre",
    "in": "inch inche", "ft": "foot feet", "yd": "yard", "mi": "mile", "s": "second sec", "min": "minute",
    "h": "hour hr", "kg": "kilogram", "g": "gram", "mg": "milligram", "l": "liter litre", "ml": "milliliter",
    "deg": "degree", "rad": "radian", "cent": "¢", "dollar": "usd buck", "euro": "eur", "pound": "lb", "n": "newton",
    "j": "joule", "w": "watt", "v": "volt", "pa": "pascal", "hz": "hertz", "ms": "millisecond", "kj": "kilojoule",
    "kw": "kilowatt", "unit": "",
}  # fmt: skip
_UNIT_OF = {word: name for name, words in _UNITS.items() for word in [name, *words.split()]}
_QUOTIENTS = {"mph": "mi/h", "kmh": "km/h", "kph": "km/h", "mps": "m/s"}
_PREFIXES = {"sq": 2, "square": 2, "cu": 3, "cubic": 3}
_SHORT = ("m", "g", "s", "h", "l")
_POWER = r"(?:\s*\^\s*\{?\s*-?\d\s*\}?)?"
_NEXT = rf"(?:(?:\s*/\s*|\s*\\cdot\s*|\s*)(?:\\text\s*\{{[^{{}}]*\}}|(?<![a-zA-Z])[a-zA-Z][a-zA-Z.-]*){_POWER})*"
_SPOKEN = re.compile(rf"(?<=[\d}})a-z!])\s*(\\text\s*\{{[^{{}}]*\}}\s*{_POWER}{_NEXT})$")
_BARE = re.compile(rf"(?:(?<=[\d}})!])|(?<=\\pi))\s+([a-zA-Z][a-zA-Z.-]*{_POWER}{_NEXT})$")
_TIGHT = re.compile(rf"(?<=\d)((?:cm|mm|km|kg|ft|in|mph){_POWER})$")
_PIECE = re.compile(r"(/|\bper\b)|([a-zA-Z¢]+)\.?(?:\s*\^\s*\{?\s*(-?\d)\s*\}?)?")


def without_unit(text: str) -> tuple[str, str]:
    """A quantity and its unit, by one name: ``%``, ``cm^2``, ``m s^-2``; "" where there is none."""
    text = text.strip()
    if found := re.search(r"(?:%|\\text\s*\{\s*per\s?cent\s*\}|\bper\s?cent)$", text):
        return text[: found.start()].strip(), "%"
    written = _SPOKEN.search(text)
    found = written or _BARE.search(text) or _TIGHT.search(text)
    if not found or found.start() == 0:
        return text, ""
    said = re.sub(r"\\text\s*\{([^{}]*)\}", r" \1", found.group(1)).lower().replace("-", " " if written else "-")
    words = re.findall("[a-z]+", said)
    variables = not written and all(len(word) == 1 for word in words) and not all(word in _SHORT for word in words)
    if variables or any(re.fullmatch(FUNCTIONS, word) for word in words):
        return text, ""
    return text[: found.start()].strip(), unit_name(said)


def unit_name(said: str) -> str:
    """One name for a unit in words, its units in alphabetic order with their powers."""
    powers: dict[str, int] = {}
    sign, ahead, last = 1, 1, ""
    said = re.sub(r"[a-z]+", lambda m: _QUOTIENTS.get(m.group(), m.group()), said)
    for slash, word, power in _PIECE.findall(said):
        if slash:
            sign = -1
        elif word in _PREFIXES:
            ahead = _PREFIXES[word]
        elif word in ("squared", "cubed") and last:
            powers[last] *= 2 if word == "squared" else 3
        elif word != "cdot":
            last = _UNIT_OF.get(word) or _UNIT_OF.get(word.rstrip("s") or word, word.rstrip("s") or word)
            powers[last] = powers.get(last, 0) + sign * ahead * int(power or 1)
            sign, ahead = 1, 1
    return " ".join(f"{n}^{p}" if p != 1 else n for n, p in sorted(powers.items()) if n not in ("deg", "unit") and p)


def symbol_of(text: str, unit: str) -> str | None:
    """The quantity of ``25 J`` beside one whose unit is spelt ``joule``, or left out; None where it has none."""
    found = re.fullmatch(r"(.*\d\}?)\s+([JNWVKACT](?: [sm])?)", text.strip())
    return found.group(1) if found and unit in ("", unit_name(found.group(2).lower())) else None
