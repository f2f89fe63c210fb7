"""The longest first: by the table of durations, and a group's tests together."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.order import TABLE, group, longest_first, read, written

ROOT = Path(__file__).parents[2]


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


def is_there(name: str) -> bool:
    """Tell whether a test's file has its function or class; its cases may be made only when it is collected."""
    path, test = name.partition("[")[0].split("::")[:2]
    source = (ROOT / path).read_text(encoding="utf-8") if (ROOT / path).exists() else ""
    return re.search(rf"^(?:(?:async )?def |class )?{test}\b", source, re.MULTILINE) is not None


def test_the_table_names_no_test_that_is_gone() -> None:
    gone = [name for name in read(TABLE.read_text(encoding="utf-8")) if not is_there(name)]
    assert gone == [], "a test was renamed: rename its row, too"


def test_a_file_names_the_group_of_its_tests() -> None:
    assert group(ROOT, "tests/unit/test_interleavings.py::test_x[a::b@c]") == "interleavings"
    assert group(ROOT, "tests/unit/test_waits.py::test_x") == "tests/unit/test_waits.py::test_x"


GROUPED = """import pytest

pytestmark = pytest.mark.xdist_group("{name}")


@pytest.mark.parametrize("number", range(6))
def test_nothing(number):
    pass
"""


def test_a_groups_tests_run_in_one_process(tmp_path: Path) -> None:
    """As `make test` hands them out; whether pytest-xdist does it by itself depends on its version and on pytest's."""
    (tmp_path / "conftest.py").write_text("from tests.conftest import pytest_xdist_make_scheduler\n", encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    for name in ("one", "two"):
        (tmp_path / f"test_{name}.py").write_text(GROUPED.format(name=name), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-n", "2", "--dist", "loadgroup", "-v", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    ran = set(re.findall(r"\[(gw\d)\] .* PASSED test_(one|two)", done.stdout))
    assert {name for _, name in ran} == {"one", "two"}, done.stdout + done.stderr
    assert len(ran) == 2
