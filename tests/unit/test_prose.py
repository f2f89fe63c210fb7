"""Sentences count as people do: one flow, two flows."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import nats_taskflow
from nats_taskflow.text import counted

NOUNS = "flows events letters replies children rows times tries parts messages workers conditions invariants"
PLURAL = re.compile(rf" (?:\(s\)|(?:(?:dead|held|open|settled) )?(?:{'|'.join(NOUNS.split())})\b)")


@pytest.mark.parametrize(
    "number, one, many, said",
    [
        (0, "flow", "", "0 flows"),
        (1, "flow", "", "1 flow"),
        (1, "dead letter", "", "1 dead letter"),
        (2, "reply", "replies", "2 replies"),
        (12_345, "flow", "", "12,345 flows"),
    ],
)
def test_a_number_of_things_is_said_as_people_say_it(number: int, one: str, many: str, said: str) -> None:
    assert counted(number, one, many) == said


MANY = {"len(leaves)", "len(others)", "times", "wanted", "len(flows)", "count", "quota"}
"""Numbers that are more than one wherever they are said."""


def many_of_one(text: ast.expr) -> Iterator[str]:
    """Give what a text counts in the plural whatever the number is; a constant is known to be many."""
    if isinstance(text, ast.Constant) and isinstance(text.value, str) and "{}" in text.value:
        yield from (found for found in re.split(r"\{\}", text.value)[1:] if PLURAL.match(found))
    if isinstance(text, ast.JoinedStr):
        for value, after in zip(text.values, text.values[1:], strict=False):
            if isinstance(value, ast.FormattedValue) and isinstance(after, ast.Constant) and isinstance(after.value, str):
                number = ast.unparse(value.value)
                if PLURAL.match(after.value) and number not in MANY and not number.strip("_").isupper():
                    yield f"{{{number}}}{after.value}"


def said(of: Callable[[ast.expr], Iterator[str]]) -> list[str]:
    """Return what is found in the expressions of the program, each with its place."""
    return [
        f"{path.name}:{node.lineno}: {one}"
        for path in Path(nats_taskflow.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.expr)
        for one in of(node)
    ]


def test_no_sentence_of_the_program_says_1_flows() -> None:
    assert said(many_of_one) == []


def exact_times(text: ast.expr) -> Iterator[str]:
    """Give the times that a text says to the microsecond, or as Python writes them."""
    if isinstance(text, ast.JoinedStr):
        calls = [ast.unparse(node.func) for node in ast.walk(text) if isinstance(node, ast.Call)]
        yield from (call for call in calls if call.rpartition(".")[2] in {"rfc3339", "isoformat", "to_datetime"})


def test_no_sentence_of_the_program_says_a_time_to_the_microsecond() -> None:
    found = [one for one in said(exact_times) if not one.startswith("clock.py:")]  # that of the test kit turns by microseconds
    assert found == []
