from fractions import Fraction

import pytest

from rlhf_lightning.data.tasks import verifiers
from rlhf_lightning.data.tasks.verifiers import READINGS, exact_match, last_number, math_answer, numeric
from rlhf_lightning.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("It costs $1,234.50 in all", Fraction(2469, 2)),
        ("10,000,000", Fraction(10_000_000)),
        ("from -3", Fraction(-3)),
        ("3-4", Fraction(4)),
        ("x=7.", Fraction(7)),
        ("1/2", Fraction(1, 2)),
        (".5", Fraction(1, 2)),
        ("1, 2, 3", Fraction(3)),
        ("1/0", None),
        ("none", None),
        ("", None),
    ],
)
def test_the_last_number_of_a_text(text, number):
    assert last_number(text) == number


def test_numeric_compares_values_not_spellings():
    assert numeric("1234", "about 5, no: 1,234.0") == 1.0
    assert numeric("0.1", "0.10000001") == 0.0
    assert numeric("3", "three") == 0.0
    with pytest.raises(ValueError, match="holds no number"):
        numeric("three", "3")


def test_exact_match_minds_all_but_the_edges():
    assert exact_match("a b", " a b\n") == 1.0
    assert exact_match("a b", "a  b") == 0.0


@pytest.mark.parametrize(
    ("reference", "answer", "score"),
    [
        (r"\frac{1}{2}", "The answer is $0.5$", 1.0),
        (r"\frac{1}{2}", r"so \boxed{\frac{2}{4}}", 1.0),
        ("x+1", "$1+x$", 1.0),
        (r"(3, \frac{\pi}{2})", r"$(3,\pi/2)$", 1.0),
        ("34", "I think 33", 0.0),
        ("3", "", 0.0),
    ],
)
def test_math_answers(reference, answer, score):
    pytest.importorskip("math_verify")
    assert math_answer(reference, answer) == score


def test_a_missing_package_names_the_extra(monkeypatch):
    def missing(module):
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    monkeypatch.setattr(verifiers, "import_module", missing)
    verifiers.optional_package.cache_clear()
    try:
        with pytest.raises(ConfigError, match=r"math-verify is not installed.*rlhf-lightning\[tasks\]"):
            math_answer("1", "1")
    finally:
        verifiers.optional_package.cache_clear()


@pytest.mark.parametrize(
    ("verifier", "text", "answer"),
    [
        ("exact", " yes \n", "yes"),
        ("exact", " ", None),
        ("numeric", "It is 0.50", "1/2"),
        ("numeric", "1,234.0 or so", "1234"),
        ("numeric", "none", None),
        ("math", r"so $\boxed{\frac{1}{2}}$.", r"\frac{1}{2}"),
        ("math", "we get\n\n$ x^2 $\n", "x^2"),
        ("math", r"\boxed{0.50}", "1/2"),
        ("math", "", None),
    ],
)
def test_answers_that_are_equal_read_the_same(verifier, text, answer):
    assert READINGS[verifier](text) == answer
