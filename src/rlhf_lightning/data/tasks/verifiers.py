"""How a response is compared with the reference, by name: exactly, by its last number, or as mathematics."""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from functools import cache
from importlib import import_module
from types import ModuleType

from rlhf_lightning.data.tasks.math_clean import check_readable, clean
from rlhf_lightning.data.tasks.math_equal import same
from rlhf_lightning.data.tasks.math_text import find_answer, last_boxed
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.protocols import AnswerVerifier
from rlhf_lightning.registry import check_choice, plugins, register, resolve
from rlhf_lightning.types import Problem

_NUMBER = re.compile(
    r"(?:(?<![\w.)])-)?(?:[0-9]+\s+(?=[0-9]+/[0-9]))?"
    r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)(?:/[0-9]+|[eE][-+]?[0-9]{1,4}(?![\w.]))?"
)
_MINUS = str.maketrans("−–‐‑﹣－", "------")
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
    r"""1 if the answer that a response gives is the reference, as mathematics: in LaTeX or plain, boxed, bare or said.

    :func:`~rlhf_lightning.data.tasks.math_text.find_answer` says where the answer stands (what stands last counts), and
    :mod:`~rlhf_lightning.data.tasks.math_equal` how it is compared. No time limit of its own: sympy can take for ever,
    so call it through the ``verifier`` scorer, which stops it.

    Raises:
        ConfigError: If the package math-verify is not installed.
        ValueError: If the reference cannot be read.
    """
    optional_package("math_verify")
    check_readable(reference)
    found = find_answer(answer)
    return float(found is not None and same(last_boxed(reference) or reference, found))


def read_exact(text: str) -> str | None:
    """The text without white space around it; None if nothing is left."""
    return text.strip() or None


def read_number(text: str) -> str | None:
    """The last number in lowest terms, so that ``0.50`` and ``1/2`` are one answer."""
    number = last_number(text)
    return None if number is None else str(number)


def read_math(text: str) -> str | None:
    """The answer that a response gives, cleaned; a number in lowest terms. Equal expressions may still differ."""
    plain = clean(find_answer(text) or "")
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
    """The same mathematics: numbers, expressions, lists, intervals, equations, matrices, quantities, or words.

    Raises:
        ConfigError: If the package math-verify is not installed.
    """

    reads_responses = True

    def __init__(self) -> None:
        optional_package("math_verify")

    def verify(self, problem: Problem, response: str) -> float:
        """As :func:`math_answer`."""
        return math_answer(problem.answer, response)

    def check_problem(self, problem: Problem) -> None:
        """Looks whether the reference can be read."""
        check_readable(problem.answer)

    def prepare(self) -> None:
        """Imports math-verify, and with it sympy and its parser, and reads a first expression."""
        optional_package("math_verify")
        same("x+1", "1+x")

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
    r"""The last number in a text, exactly; None where there is none (or it divides by zero).

    ``10,000``, ``10{,}000``, ``10\,000``, ``1e4``, ``1/2``, ``\frac{1}{2}``, ``2 1/2``; minus signs of all kinds.
    """
    text = re.sub(r"(?<=[0-9])(?:\{,\}|,?\\[,!]\s?|[\u2009\u202f])(?=[0-9]{3}(?![0-9]))", ",", text.translate(_MINUS))
    text = re.sub(r"(?<=[0-9])\\(?=[dtc]?frac)", r" \\", text)
    text = re.sub(r"\\[dtc]?frac\s*\{\s*(-?[0-9.]+)\s*\}\s*\{\s*([0-9.]+)\s*\}", r"\1/\2", text)
    found = _NUMBER.findall(text)
    if not found:
        return None
    *whole, last = found[-1].replace(",", "").split()
    numerator, _, denominator = last.partition("/")
    if denominator and not int(denominator):
        return None
    value = Fraction(Decimal(numerator)) / int(denominator or 1)
    if not whole:
        return value
    return Fraction(whole[0]) + (-value if whole[0].startswith("-") else value)


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
