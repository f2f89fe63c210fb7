"""docs/fault-runs.md names every scenario that there is, and none that there is not."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_table_of_scenarios_is_that_of_the_tests() -> None:
    page = (ROOT / "docs" / "fault-runs.md").read_text(encoding="utf-8")
    rows = page.partition("## The scenarios")[2].partition("## ")[0].splitlines()
    told = {name for row in rows if row.startswith("| `") for name in re.findall(r"`([a-z-]+)`", row.split("|")[1])}
    tests = [path.read_text(encoding="utf-8") for path in (ROOT / "tests" / "faults").glob("test_*.py")]
    assert told == {name for text in tests for name in re.findall(r'mark\.scenario\("([a-z-]+)"\)', text)}
