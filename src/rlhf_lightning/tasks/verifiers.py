"""How an answer is compared with the reference, by name: each takes (reference, answer) and returns 0 or 1."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from functools import cache
from importlib import import_module
from types import ModuleType

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.protocols import AnswerVerifier
from rlhf_lightning.registry import check_choice, plugins, register, resolve
from rlhf_lightning.types import Problem

_NUMBER = re.compile(
    r"(?:(?<![\w.)])-)?(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)(?:/[0-9]+)?"
)
DEFAULT_ANSWER_PATTERN = r"(?s)^(?:.*Answer:)?\s*(.*?)\s*$"
"""Text after the last ``Answer:``, or else the whole response; stripped."""


def exact_match(reference: str, answer: str) -> float:
    """1 if the texts are the same but for white space around them."""
    return float(answer.strip() == reference.strip())


def numeric(reference: str, answer: str) -> float:
    """1 if the last number in ``answer`` equals the reference exactly: ``1,234`` = ``1234.0``, ``1/2`` = ``0.5``.

    Raises:
        ValueError: If the reference holds no number.
    """
    wanted = last_number(reference)
    if wanted is None:
        raise ValueError(f"the reference answer {reference!r} holds no number")
    return float(last_number(answer) == wanted)


def math_answer(reference: str, answer: str) -> float:
    """1 if math-verify finds the expressions equal (LaTeX or plain; the boxed or last one in ``answer`` counts).

    No time limit of its own: sympy can take for ever, so call it through the ``verifier`` scorer, which stops it.

    Raises:
        ConfigError: If the package math-verify is not installed.
        ValueError: If the reference cannot be read.
    """
    library = optional_package("math_verify")
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that the caller must limit the time: we do
    gold = library.parse(_as_math(reference), parsing_timeout=None)
    if not gold:
        raise ValueError(f"math-verify cannot read the reference answer {reference!r}")
    found = library.parse(answer, parsing_timeout=None)
    return float(library.verify(gold, found, timeout_seconds=None, raise_on_error=True))


def read_exact(text: str) -> str | None:
    """The text without white space around it; None if nothing is left."""
    return text.strip() or None


def read_number(text: str) -> str | None:
    """The last number in lowest terms, so that ``0.50`` and ``1/2`` are one answer."""
    number = last_number(text)
    return None if number is None else str(number)


def read_math(text: str) -> str | None:
    """What the last box holds, else the last line; a number in lowest terms. Equal expressions may still differ."""
    found = last_boxed(text) or next((line for line in reversed(text.splitlines()) if line.strip()), "")
    plain = found.strip().strip("$").strip()
    return read_number(plain) if _NUMBER.fullmatch(plain) else plain or None


@register("verifier", "exact")
class ExactVerifier(AnswerVerifier):
    """The same text, white space around it aside."""

    def verify(self, problem: Problem, response: str) -> float:
        """As :func:`exact_match`."""
        return exact_match(problem.answer, response)


@register("verifier", "numeric")
class NumericVerifier(AnswerVerifier):
    """The same last number."""

    def verify(self, problem: Problem, response: str) -> float:
        """As :func:`numeric`."""
        return numeric(problem.answer, response)

    def check_problem(self, problem: Problem) -> None:
        """Looks for a number in the reference."""
        numeric(problem.answer, "")

    def answer_of(self, response: str) -> str | None:
        """As :func:`read_number`."""
        return read_number(response)


@register("verifier", "math")
class MathVerifier(AnswerVerifier):
    """An equal expression, in LaTeX or plain.

    Raises:
        ConfigError: If the package math-verify is not installed.
    """

    def __init__(self) -> None:
        optional_package("math_verify")

    def verify(self, problem: Problem, response: str) -> float:
        """As :func:`math_answer`."""
        return math_answer(problem.answer, response)

    def prepare(self) -> None:
        """Imports math-verify."""
        optional_package("math_verify")

    def answer_of(self, response: str) -> str | None:
        """As :func:`read_math`."""
        return read_math(response)


READINGS: dict[str, Callable[[str], str | None]] = {"exact": read_exact, "numeric": read_number, "math": read_math}
"""How each verifier's answers are written so that equal ones are the same text, as far as that goes."""


def find_verifier(name: str) -> AnswerVerifier:
    """The verifier of that name.

    Raises:
        ConfigError: If there is none, naming the nearest, or it needs arguments.
    """
    check_choice(name, plugins("verifier"), "verifier")
    try:
        made: AnswerVerifier = resolve("verifier", name)()
    except TypeError as error:
        raise ConfigError(f"verifier {name}: needs arguments, as {{name: {name}, …}}: {error}") from error
    return made


def last_number(text: str) -> Fraction | None:
    """The last number in a text, exactly; None where there is none (or it divides by zero)."""
    found = _NUMBER.findall(text)
    if not found:
        return None
    numerator, _, denominator = found[-1].replace(",", "").partition("/")
    divisor = int(denominator or 1)
    return Fraction(Decimal(numerator)) / divisor if divisor else None


def last_boxed(text: str) -> str | None:
    r"""What the last ``\boxed{…}`` holds, with its inner braces balanced."""
    start = text.rfind("\\boxed{")
    depth = 0
    for position in range(start + 6, len(text)) if start >= 0 else ():
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[start + 7 : position]
    return None


def compile_pattern(pattern: str | None, key: str) -> re.Pattern[str]:
    """A regular expression with exactly one group, the answer.

    Args:
        pattern: The expression; :data:`DEFAULT_ANSWER_PATTERN` when not given.
        key: Name of the argument, for messages.

    Raises:
        ConfigError: If it is no regular expression, or has not one group.
    """
    try:
        compiled = re.compile(DEFAULT_ANSWER_PATTERN if pattern is None else pattern)
    except re.error as error:
        raise ConfigError(f"{key}: {pattern!r} is no regular expression: {error}") from error
    if compiled.groups != 1:
        raise ConfigError(f"{key}: {pattern!r} must have exactly one group (the answer), it has {compiled.groups}")
    return compiled


def extract(pattern: re.Pattern[str], response: str) -> str | None:
    """What the pattern's last match found, or None where nothing matched."""
    found = [match.group(1) for match in pattern.finditer(response)]
    return found[-1] if found else None


@cache
def optional_package(module: str) -> ModuleType:
    """Imports a package of the extra ``tasks``.

    Raises:
        ConfigError: If it is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        package = module.replace("_", "-")
        raise ConfigError(f"{package} is not installed; it comes with: pip install 'rlhf-lightning[tasks]'") from error


def _as_math(reference: str) -> str:
    """Letters and LaTeX are only found between dollar signs or in a box."""
    return reference if "$" in reference or "\\boxed" in reference else f"${reference}$"
