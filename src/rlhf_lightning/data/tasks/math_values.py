"""Units of quantities: which word stands for which, and ``m/s^2`` as the powers of its units."""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from typing import Any

from rlhf_lightning.data.tasks.math_text import FUNCTIONS

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


TOLERANCE = Fraction(1, 10**6)
"""Most relative error of a decimal that stands for another number."""
_ZEROS = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_MAGNITUDE = re.compile(r"(?<=\d)\s*(?:\\text\s*\{\s*)?\b(thousand|million|billion|trillion)\b(?:\s*\})?")


def same_values(wanted: str, given: str) -> bool:
    """Whether two single values are the same, their units and percent signs looked at."""
    if wanted.replace(" ", "") == given.replace(" ", ""):
        return True
    scaled = [_MAGNITUDE.sub(lambda m: rf"\times 10^{{{_ZEROS[m.group(1)]}}}", text) for text in (wanted, given)]
    if scaled != [wanted, given] and same_values(*scaled):
        return True
    (own, unit), (other, found) = without_unit(wanted), without_unit(given)
    if not (unit and found):
        letters = [None if re.search(r"(?<!\\)\b[a-z]", text) else text for text in (own, other)]
        symbols = symbol_of(own, found) if letters[1] else None, symbol_of(other, unit) if letters[0] else None
        if None in symbols:
            own, other = symbols[0] or own, symbols[1] or other
    if "%" in (unit, found):
        if unit == found:
            return _same_quantities(own, other)
        bare, percent = (other, own) if unit == "%" else (own, other)
        return "" in (unit, found) and (
            _same_quantities(bare, percent) or _same_quantities(bare, rf"\frac{{{percent}}}{{100}}")
        )
    if unit and found and unit != found:
        return False
    return _same_quantities(own, other)


def _same_quantities(wanted: str, given: str) -> bool:
    base = [re.fullmatch(r"\(?(\w+?)\)?_\{?(\d+)\}?", text.replace(" ", "")) for text in (wanted, given)]
    if any(found is not None and found.group(1)[0].isdigit() for found in base):
        return bool(base[0] and base[1] and base[0].groups() == base[1].groups())
    numbers = _number(wanted), _number(given)
    if numbers[0] is not None and numbers[1] is not None:
        return _same_numbers(numbers[0], numbers[1], wanted, given)
    own, other = expression(wanted), expression(given)
    if own is None or other is None:
        return False
    return equal(own, other, rounded=any(re.search(r"\d?\.\d", text) for text in (wanted, given)))


def _number(text: str) -> Fraction | None:
    r"""The exact value: ``-3``, ``.5``, ``7/8``, ``\frac{7}{8}``, ``1\frac{4}{5}``, ``1.6\times 10^{-19}``."""
    text = text.replace(r"\cdot", r"\times").strip()
    text = re.sub(r"^\(([^()]*)\)$", r"\1", text)
    if len(text) > 200:
        return None
    signed = re.fullmatch(r"([-+]?)\s*(.*)", text)
    sign, text = (-1 if signed and signed.group(1) == "-" else 1), signed.group(2) if signed else text
    if re.fullmatch(r"\d+\.?\d*|\.\d+", text):
        return sign * Fraction(text.rstrip(".") if text.endswith(".") else text)
    if endless := re.fullmatch(r"(\d*)\.(\d*)\\(?:overline|dot|bar)\s*\{?(\d+)\}?", text):
        whole, before, again = endless.groups()
        period = Fraction(int(again), (10 ** len(again) - 1) * 10 ** len(before))
        return sign * (Fraction(f"{whole or 0}.{before or 0}") + period)
    if power := re.fullmatch(r"(?:(\d+\.?\d*|\.\d+)\s*\\times\s*)?10\s*\^\s*\{?\s*([-+]?\d{1,4})\s*\}?", text):
        return sign * Fraction(power.group(1) or 1) * Fraction(10) ** int(power.group(2))
    if power := re.fullmatch(r"(\d+\.?\d*|\.\d+)[eE]([-+]?\d{1,4})", text):
        return sign * Fraction(power.group(1)) * Fraction(10) ** int(power.group(2))
    mixed = re.fullmatch(r"(?:(\d+)\s*)?\\frac\s*\{\s*([-+]?\d+\.?\d*)\s*\}\s*\{\s*([-+]?\d+\.?\d*)\s*\}", text)
    mixed = mixed or re.fullmatch(r"(?:(\d+)\s+)?([-+]?\d+\.?\d*)\s*/\s*([-+]?\d+\.?\d*)", text)
    if mixed and Fraction(mixed.group(3)):
        return sign * (int(mixed.group(1) or 0) + Fraction(mixed.group(2)) / Fraction(mixed.group(3)))
    return None


def _same_numbers(a: Fraction, b: Fraction, wanted: str, given: str) -> bool:
    """Exact, or one the decimal of the other: a rounding to as many places as it shows, of six digits at least."""
    if a == b:
        return True
    places = [len(m.group(1)) if (m := re.fullmatch(r"[-+]?\d*\.(\d+)", t.strip())) else None for t in (wanted, given)]
    for rounded, exact, shown, other in ((a, b, places[0], places[1]), (b, a, places[1], places[0])):
        if shown is None or (other is not None and other <= shown):
            continue
        digits = len(str(abs(rounded.numerator * 10**shown // rounded.denominator)).lstrip("0"))
        if (
            digits >= 6
            and abs(rounded - exact) <= Fraction(1, 10**shown)
            and abs(a - b) <= TOLERANCE * max(abs(a), abs(b))
        ):
            return True
    return False


@lru_cache(maxsize=4096)
def expression(text: str) -> Any:
    """The sympy expression of a text; None where it is none."""
    import sympy
    from latex2sympy2_extended.latex2sympy2 import latex2sympy

    text = re.sub(r"(?<![\\a-zA-Z])(" + FUNCTIONS + r")(?![a-zA-Z])", r"\\\1", text)
    text = re.sub(r"(?<![\d.}])(\d+)\s*\\frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}", r"(\1+\\frac{\2}{\3})", text)
    text = re.sub(r"\\text\s*\{([^{}]*)\}", lambda m: m.group(1) if len(m.group(1).strip()) < 2 else m.group(), text)
    if re.search(r"[⟦⟧?:']|[=<>]|\\(?:le|ge|pm|cup|text)\b", text) or text.count("{") != text.count("}"):
        return None
    if _too_big(text):
        return None
    imaginary = bool(re.search(r"(?<![\\a-zA-Z])i(?![a-zA-Z])|\\(?:imath|mathrm\{i\})|\di(?![a-zA-Z])", text))
    try:
        found = latex2sympy(text, is_real=not imaginary, convert_degrees=False, normalization_config=None)
        if not isinstance(found, sympy.Expr) or found.has(sympy.nan, sympy.zoo):
            return None
        return found.subs({s: sympy.I for s in found.free_symbols if s.name == "i"}) if imaginary else found
    except MemoryError:
        raise
    except Exception:  # its parser and sympy raise of all kinds
        return None


def _too_big(text: str) -> bool:
    """Whether a power or factorial has more digits than can be computed: it is compared as a text alone."""
    text = re.sub(r"[\s{}()]", "", text)
    if re.search(r"\d\^[-+]?\d*\^\d*\^|\d{6,}!|!!|\d\^[-+]?\d{6,}|\d!\^|\^\d+!", text):
        return True
    return any(int(b) ** min(int(c), 64) > 10**5 for b, c in re.findall(r"\d\^-?(\d{1,6})\^(\d{1,6})", text))


def equal(a: Any, b: Any, *, rounded: bool = False) -> bool:
    """Whether two expressions have one value, at a few points where they have variables."""
    import sympy

    names = {s.name for s in a.free_symbols} | {s.name for s in b.free_symbols}
    if {s.name for s in a.free_symbols} != {s.name for s in b.free_symbols}:
        a, b = sympy.simplify(a), sympy.simplify(b)
        if {s.name for s in a.free_symbols} != {s.name for s in b.free_symbols}:
            return False
    if a in (sympy.oo, -sympy.oo) or b in (sympy.oo, -sympy.oo):
        return bool(a == b)
    limit = sympy.Float(float(TOLERANCE)) * sympy.Float("1.0000001") if rounded else sympy.Float("1e-25")
    seen = 0
    for values in _points(sorted(names)) if names else [{}]:
        first, second = (e.subs({s: values[s.name] for s in e.free_symbols}).evalf(40) for e in (a, b))
        if (
            not (first.is_number and second.is_number)
            or first.has(sympy.nan, sympy.zoo)
            or second.has(sympy.nan, sympy.zoo)
        ):
            continue
        size = max(abs(first), abs(second))
        if not size.is_comparable:
            return False
        if abs(first - second) > limit * size and size > sympy.Float("1e-30"):
            return False
        seen += 1
    return seen > 0


def _points(names: list[str]) -> list[dict[str, Any]]:
    """Values for variables at which two different expressions are hardly equal: primes' quotients, of both signs."""
    import sympy

    primes = [7, 13, 29, 41, 59, 83, 101, 127, 149, 173, 199, 223]
    return [
        {
            n: sympy.Rational((-1) ** (k * (j + 1)) * primes[(3 * j + k) % 12], primes[(j + 5 * k + 4) % 12])
            for j, n in enumerate(names)
        }
        for k in range(4)
    ]


def multiple(left: str, right: str, *, positive: bool) -> bool:
    """Whether one expression is a constant times the other."""
    import sympy

    a, b = expression(left), expression(right)
    if a is None or b is None or {s.name for s in a.free_symbols} != {s.name for s in b.free_symbols}:
        return False
    ratios = []
    for values in _points(sorted(s.name for s in a.free_symbols)):
        first, second = (e.subs({s: values[s.name] for s in e.free_symbols}) for e in (a, b))
        if second == 0 or first == 0:
            return bool(first == second)
        ratios.append(sympy.N(first / second, 40))
    same_ratio = all(abs(ratio - ratios[0]) < sympy.Float("1e-25") * abs(ratios[0]) for ratio in ratios)
    return bool(same_ratio and (not positive or ratios[0] > 0))
