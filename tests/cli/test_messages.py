"""What is made of the parser's messages. The texts are the parser's own, as its version in use writes them."""

from __future__ import annotations

import pytest
from jsonargparse import ArgumentError, ArgumentParser

from rlhf_lightning.cli.document import Document
from rlhf_lightning.cli.messages import explain, understand


class Inner:
    def __init__(self, size: int = 1, ratio: float | None = None) -> None: ...


class Outer:
    def __init__(self, inner: Inner | None = None, parts: list[Inner] | None = None) -> None: ...


def refusal(value: object) -> str:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Outer, "outer")
    with pytest.raises(ArgumentError) as caught:
        parser.parse_object({"outer": {"class_path": f"{__name__}.Outer", "init_args": value}})
    return str(caught.value)


def inner(**arguments: object) -> dict:
    return {"class_path": f"{__name__}.Inner", "init_args": arguments}


@pytest.mark.parametrize(
    ("value", "key", "owner", "reason"),
    [
        ({"inner": inner(size="x")}, "outer.inner.size", "Inner", "expected int, got x"),
        ({"inner": inner(ratio="x")}, "outer.inner.ratio", "Inner", "expected float or None, got x"),
        ({"parts": [inner(size=1), inner(size="x")]}, "outer.parts.size", "Inner", "expected int, got x"),
        ({"inner": inner(sise=1)}, "outer.inner", "Inner", "Option 'sise' is not accepted"),
    ],
)
def test_the_innermost_reason_is_found(value, key, owner, reason):
    found = understand(refusal(value))
    assert (".".join(found.key), found.cls, found.reason) == (key, f"{__name__}.{owner}", reason)


def test_the_sentence_names_where_the_key_was_written():
    document = Document(sources={("outer", "inner"): "a.yaml:7"})
    text = explain(refusal({"inner": inner(size="x")}), document)
    assert text == f"a.yaml:7: outer.inner.size: expected int, got x (an argument of {__name__}.Inner)"


def test_a_message_of_unknown_form_is_kept():
    assert explain("something else went wrong", Document()) == "something else went wrong"
