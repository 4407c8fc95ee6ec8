r"""Whether two answers are the same: lists, sets, tuples, intervals, equations, matrices, words, and what is in them.

What an answer is made of is read here, so that no part of it can pass for the whole.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, permutations
from typing import Any, Literal

from rlhf_lightning.data.tasks.math_clean import clean
from rlhf_lightning.data.tasks.math_values import equal, expression, multiple, same_values, without_unit

Kind = Literal["leaf", "list", "set", "tuple", "region", "equation", "matrix"]
_PAIRS = {"(": ")", "[": "]", "⟦": "⟧", "{": "}", "|": "|"}
_ORDER = re.compile(r"(\\le(?![a-zA-Z])|\\ge(?![a-zA-Z])|<|>)")
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)")
_NAME = re.compile(r"(?:[a-zA-Z]|\\[a-zA-Z]+)(?:_\{?\w+\}?)?(?:\s*\([\w, .+-]*\))?'*")


@dataclass(frozen=True)
class _Read:
    """An answer as it is put together: its parts, or for a leaf its text."""

    kind: Kind
    parts: tuple[Any, ...] = ()
    text: str = ""
    ends: str = ""


def same(reference: str, answer: str) -> bool:
    """Whether an answer is the reference, both as they were written."""
    wanted, given = clean(reference), clean(answer)
    if not wanted or not given:
        return False
    if wanted.replace(" ", "") == given.replace(" ", ""):
        return True
    if (words := _words(wanted)) is not None:
        option = re.match(r"(?:\\text\s*\{)?\(?([A-Z])(?:[).:]|\\?\})+\s", given)
        said = _words(given)
        if said and " " in words and said.endswith(f" {words}") and not re.search(r"\bno[tr]?\b", said[: -len(words)]):
            return True
        return words == said or (len(words) == 1 and option is not None and words == option.group(1).lower())
    return _same(_read(wanted), _read(given))


def _words(text: str) -> str | None:
    r"""An answer in words, in lower case: ``\text{(C)}``, ``Evelyn``, ``no solution``; None where it is mathematics."""
    held = re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", text)
    bare = re.sub(r"[().,'\"-]", " ", held).strip()
    if not re.fullmatch(r"[^\W\d_]+(?: +[^\W\d_]+)*", bare):
        return None
    spoken = r"\text" in text or re.search(r"[^\W\d_]{3}", bare) or bare.lower() == "no"
    if not spoken and not re.fullmatch(r"\([A-Z]\)|[A-Z]", held.strip()):
        return None  # variables
    words = re.sub(r"^(?:option|choice|an?|the) ", "", " ".join(bare.lower().split()))
    return "does not exist" if words == "dne" else words


def _split(text: str, separators: str) -> list[str]:
    """The parts of a text between separators that stand in no brackets."""
    pattern = re.compile(separators)
    parts, depth, start, position = [], 0, 0, 0
    while position < len(text):
        match = pattern.match(text, position) if depth == 0 else None
        if match and match.end() > position:
            parts.append(text[start:position])
            start = position = match.end()
            continue
        if text.startswith(r"\begin", position):
            depth += 1
        elif text.startswith(r"\end", position):
            depth -= 1
        depth += {"(": 1, "[": 1, "⟦": 1, "{": 1, ")": -1, "]": -1, "⟧": -1, "}": -1}.get(text[position], 0)
        position += 1
    return [part.strip() for part in [*parts, text[start:]]]


def _read(text: str) -> _Read:
    text = re.sub(r"\\text\s*\{\s*,?\s*(and|or)\s*\}", r" \1 ", text).strip().rstrip(".,;")
    text = re.sub(rf"^{_NAME.pattern}\s*\\in(?![a-zA-Z])\s*", "", text)
    if matrix := re.fullmatch(
        r"\[?\s*\\begin\s*\{([pbvBV]?matrix|array|smallmatrix)\}(?:\s*\{[lcr| ]*\})?(.*)\\end\s*\{\1\}\s*\]?",
        text,
        re.DOTALL,
    ):
        rows = [row for row in _split(matrix.group(2), "⏎") if row]
        return _Read("matrix", tuple(tuple(map(_read, _split(row, "&"))) for row in rows))
    parts = [part for part in _split(text, r"\s*[,;]\s*(?:and\b|or\b)?|\s+(?:and|or)\s+") if part]
    if len(parts) > 1:
        read = [_read(part) for part in parts]
        if all(part.kind == "region" for part in read) and " and " not in text:
            return _Read("region", tuple(piece for part in read for piece in part.parts))
        return _Read("list", tuple(read))
    pieces = _split(text, r"\\cup(?![a-zA-Z])")
    if len(pieces) > 1:
        regions = [region for piece in pieces if (region := _region(_read(piece))) is not None]
        if len(regions) == len(pieces):
            return _Read("region", tuple(piece for region in regions for piece in region.parts))
    if len(_split(text, _ORDER.pattern.strip("()"))) > 1:
        return _ordered(text)
    reals = r"(?:\\mathbb\s*\{?\s*R\s*\}?|\\R(?![a-zA-Z]))"
    if re.fullmatch(reals, text):
        return _Read("region", ((r"-\infty", r"\infty", "()"),))
    if missing := re.fullmatch(rf"{reals}\s*(?:\\setminus|-)\s*⟦(.*)⟧|{_NAME.pattern}\s*\\ne\s+(.*)", text):
        return _without(_split(missing.group(1) or missing.group(2), r"\s*,\s*")) or _Read("leaf", text=text)
    if described := re.fullmatch(rf"⟦\s*{_NAME.pattern}\s*(?:\\in\s*{reals}\s*)?[:|](.*)⟧", text):
        return _read(described.group(1))
    if (point := re.fullmatch(r"[A-Z]'?\s*(\(.*\))", text)) and _whole(point.group(1)) and "," in point.group(1):
        text = point.group(1)
    sides = _split(text, r"=(?!=)")
    if len(sides) > 1 and all(sides):
        return _Read("equation", tuple(sides))
    if len(text) > 2 and _PAIRS.get(text[0], "") in (")", "]", "⟧") and _whole(text):
        inner = _split(text[1:-1], ",")
        if len(inner) > 1 or text[0] == "⟦":
            read = [_read(part) for part in inner if part]
            if text[0] == "⟦":
                return _Read("set", tuple(_spread(read)))
            if text[0] == "[" and all(part.kind == "tuple" and part.ends == "[]" for part in read):
                return _Read("matrix", tuple(part.parts for part in read))
            return _Read("tuple", tuple(read), ends=text[0] + text[-1])
        if text[0] == "(":
            return _read(text[1:-1])
    if r"\pm" in text and text.count(r"\pm") == 1:
        return _Read(
            "list", (_Read("leaf", text=text.replace(r"\pm", "+")), _Read("leaf", text=text.replace(r"\pm", "-")))
        )
    return _Read("leaf", text=text)


def _whole(text: str) -> bool:
    """Whether the bracket that opens the text closes at its end."""
    depth = 0
    for position, sign in enumerate(text):
        depth += {"(": 1, "[": 1, "⟦": 1, ")": -1, "]": -1, "⟧": -1}.get(sign, 0)
        if depth == 0:
            return position == len(text) - 1
    return False


def _spread(parts: Sequence[_Read]) -> list[_Read]:
    """With lists inside of a list, as of ``±``, taken apart."""
    return [piece for part in parts for piece in (_spread(part.parts) if part.kind == "list" else [part])]


def _ordered(text: str) -> _Read:
    """An inequality, or a chain of two, as an interval (its ends and whether they belong to it)."""
    signs = [m.group() for m in re.finditer(r"\\le(?![a-zA-Z])|\\ge(?![a-zA-Z])|<|>", text)]
    sides = _split(text, r"\\le(?![a-zA-Z])|\\ge(?![a-zA-Z])|<|>")
    if len(sides) != len(signs) + 1 or not all(sides):
        return _Read("leaf", text=text)
    if signs and all(sign in ("\\ge", ">") for sign in signs):
        sides, signs = sides[::-1], [{"\\ge": "\\le", ">": "<"}[sign] for sign in reversed(signs)]
    up = all(sign in ("\\le", "<") for sign in signs)
    named = [bool(_NAME.fullmatch(side)) and side.strip() not in (r"\pi", r"\infty", "e", "i") for side in sides]
    if up and len(sides) == 3 and named == [False, True, False]:
        ends = ("[" if signs[0] == "\\le" else "(") + ("]" if signs[1] == "\\le" else ")")
        return _Read("region", ((sides[0], sides[2], ends),))
    if up and len(sides) == 2 and named == [True, False]:
        return _Read("region", ((r"-\infty", sides[1], "(" + ("]" if signs[0] == "\\le" else ")")),))
    if up and len(sides) == 2 and named == [False, True]:
        return _Read("region", ((sides[0], r"\infty", ("[" if signs[0] == "\\le" else "(") + ")"),))
    if up and len(sides) == 2:
        return _Read("equation", (signs[0], f"({sides[1]})-({sides[0]})"), ends="order")
    return _Read("leaf", text=text)


def _without(points: Sequence[str]) -> _Read | None:
    """All real numbers but these; None where they are none that can be put in order."""
    values = [expression(point) for point in points]
    if not all(value is not None and value.is_comparable for value in values):
        return None
    ordered = [point for _, point in sorted(zip(map(float, values), points, strict=True))]
    ends = [r"-\infty", *ordered, r"\infty"]
    return _Read("region", tuple((low, high, "()") for low, high in pairwise(ends)))


def _region(read: _Read) -> _Read | None:
    """An interval in brackets as a region."""
    if read.kind == "region":
        return read
    if read.kind == "tuple" and len(read.parts) == 2 and all(part.kind == "leaf" for part in read.parts):
        return _Read("region", ((read.parts[0].text, read.parts[1].text, read.ends),))
    return None


def _same(wanted: _Read, given: _Read) -> bool:
    if (wanted.kind == "equation") != (given.kind == "equation"):
        read, other = (wanted, given) if wanted.kind == "equation" else (given, wanted)
        value = _value_of(read) if not read.ends else None
        return value is not None and _same(_read(value[1]), other)
    if "region" in (wanted.kind, given.kind):
        return _same_regions(_region(wanted), _region(given))
    if wanted.kind == "matrix" or given.kind == "matrix":
        shapes = [[len(row) for row in read.parts] if read.kind == "matrix" else None for read in (wanted, given)]
        return shapes[0] == shapes[1] and all(
            _same(a, b)
            for own, other in zip(wanted.parts, given.parts, strict=True)
            for a, b in zip(own, other, strict=True)
        )
    if wanted.kind == "tuple" and given.kind == "tuple":
        return wanted.ends == given.ends and _in_order(wanted.parts, given.parts)
    if "tuple" in (wanted.kind, given.kind):
        mine, other = (wanted, given) if wanted.kind == "tuple" else (given, wanted)
        return mine.ends == "()" and other.kind == "list" and _in_order(wanted.parts, given.parts)
    if wanted.kind in ("list", "set") or given.kind in ("list", "set"):
        own = _spread(wanted.parts if wanted.kind in ("list", "set") else [wanted])
        return _matched(own, _spread(given.parts if given.kind in ("list", "set") else [given]))
    if "equation" in (wanted.kind, given.kind):
        return _same_equations(wanted, given)
    return same_values(wanted.text, given.text)


def _in_order(wanted: Sequence[_Read], given: Sequence[_Read]) -> bool:
    return len(wanted) == len(given) and all(_same(a, b) for a, b in zip(wanted, given, strict=True))


def _matched(wanted: Sequence[_Read], given: Sequence[_Read]) -> bool:
    """Whether each of one side has its own equal on the other."""
    if len(wanted) != len(given):
        return False
    left = list(given)
    for part in wanted:
        found = next((other for other in left if _same(part, other)), None)
        if found is None:
            return False
        left.remove(found)
    return True


def _same_regions(wanted: _Read | None, given: _Read | None) -> bool:
    if wanted is None or given is None or len(wanted.parts) != len(given.parts) or len(wanted.parts) > 5:
        return False
    return any(
        all(
            a[2] == b[2] and same_values(a[0], b[0]) and same_values(a[1], b[1])
            for a, b in zip(wanted.parts, order, strict=True)
        )
        for order in permutations(given.parts)
    )


def _same_equations(wanted: _Read, given: _Read) -> bool:
    """``x = 5`` is 5, and so is ``2 + 3 = 5``; an equation in variables is only its own multiples."""
    if "order" in (wanted.ends, given.ends):
        return (
            wanted.ends == given.ends
            and wanted.parts[0] == given.parts[0]
            and multiple(wanted.parts[1], given.parts[1], positive=True)
        )
    own, others = _value_of(wanted), _value_of(given)
    if own is not None and others is not None:
        (name, value), (other, found) = own, others
        if name and other and _plain_name(name) != _plain_name(other):
            return False
        return _same(_read(value), _read(found))
    if wanted.kind == given.kind == "equation" and len(wanted.parts) == len(given.parts) == 2:
        left, right = (f"({read.parts[0]})-({read.parts[1]})" for read in (wanted, given))
        return multiple(left, right, positive=False)
    return False


def _plain_name(name: str) -> str:
    """``a_{n}`` as ``a_n``; a function of x as y."""
    plain = re.sub(r"[\s{}]", "", name)
    return "y" if re.fullmatch(r"[fgh]\(x\)", plain) else plain


def _value_of(read: _Read) -> tuple[str, str] | None:
    """What is named and its value, where an answer is a value; the name may be missing."""
    if read.kind != "equation":
        return "", read.text
    first, last = read.parts[0], read.parts[-1]
    if _NAME.fullmatch(first.strip()) or re.fullmatch(r"\(\s*[a-zA-Z](?:_\d)?(?:\s*,\s*[a-zA-Z](?:_\d)?)+\s*\)", first):
        return first.strip(), last
    if re.fullmatch(r"(?:\\text\s*\{[^{}]*\}|[A-Za-z]{2,}(?: [A-Za-z]+)*)", first.strip()):
        return "", last
    if last != "0" and re.fullmatch(r"[a-zA-Z](?:\s*[-+]\s*[a-zA-Z])+|\[[A-Z]{3,5}\]|\|[A-Z]{2}\|", first.strip()):
        return "", last  # what is asked for: m + n, an area, a length
    if re.fullmatch(r"(?:m\s*)?\\(?:overline|angle|triangle|widehat)\s*\{?\s*[A-Z]{1,4}\s*\}?", first.strip()):
        return "", last
    sums = [expression(without_unit(side)[0]) for side in read.parts]
    if all(side is not None and not side.free_symbols for side in sums) and all(equal(a, b) for a, b in pairwise(sums)):
        return "", last
    if len(read.parts) > 2 and any(same_values(a, b) for a, b in pairwise(read.parts[:-1])):
        return "", last
    return None
