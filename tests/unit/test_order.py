"""The longest first: by the table of durations, and a group's tests together."""

from __future__ import annotations

from tests.order import TABLE, longest_first, read, written


def in_order(*tests: tuple[str, float]) -> list[str]:
    return [tests[place][0] for place in longest_first(tests)]


def test_the_longest_begin_and_equal_ones_keep_their_order() -> None:
    assert in_order(("a", 0), ("b", 3), ("c", 0), ("d", 7)) == ["d", "b", "a", "c"]


def test_a_group_counts_as_one_and_keeps_its_own_order() -> None:
    tests = (("alone", 5.0), ("group", 1.0), ("short", 0.0), ("group", 6.0))
    assert longest_first(tests) == [1, 3, 0, 2]


def test_the_table_reads_back_and_keeps_only_what_takes_time() -> None:
    durations = {"tests/a.py::test_x[1 2]": 3.14, "tests/a.py::test_y": 0.4, "tests/b.py::test_z": 90.8}
    text = written(durations)
    assert read(text) == {"tests/b.py::test_z": 91.0, "tests/a.py::test_x[1 2]": 3.0}
    assert text.splitlines()[0].endswith("test_z")


def test_the_table_that_is_there_is_one_that_would_be_written() -> None:
    text = TABLE.read_text(encoding="utf-8")
    assert written(read(text)) == text
    assert read(text)
