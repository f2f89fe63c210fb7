"""What a run of each size plays: nothing is left out by all of them, and nothing is played twice the same."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from itertools import product

import pytest

from tests.tiers import ROOT, Tests, is_part, rotated, size_of, touches_pages

SCENARIO = re.compile(r'mark\.scenario\("([a-z-]+)"\)\n(?:@.*\n)*async def (test_\w+)')


@pytest.mark.parametrize("share", [1, 2, 3, 4, 7])
def test_the_shares_of_successive_commits_are_all_the_items_each_once(share: int) -> None:
    items = range(10)
    shares = [rotated(items, share, f"{commit:x}") for commit in range(0xABC, 0xABC + share)]
    assert sorted(item for one in shares for item in one) == list(items)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_the_same_commit_has_the_same_share() -> None:
    assert rotated("abcdefgh", 4, "31faec408625") == rotated("abcdefgh", 4, "31faec408625")


def test_a_size_that_there_is_not_is_refused_by_name() -> None:
    assert size_of({}) is Tests.QUICK
    assert size_of({"TASKFLOW_TESTS": "rest"}) is Tests.REST
    with pytest.raises(ValueError, match=r"TASKFLOW_TESTS.*nightly"):
        size_of({"TASKFLOW_TESTS": "ci"})


@pytest.mark.parametrize("full, sized, page, pages", list(product([False, True], repeat=4)))
def test_the_rest_is_what_the_quick_run_leaves_out_or_plays_smaller(*, full: bool, sized: bool, page: bool, pages: bool) -> None:
    quick, rest, whole = (is_part(size, full=full, sized=sized, page=page, pages=pages) for size in (Tests.QUICK, Tests.REST, Tests.ALL))
    assert whole
    assert quick or rest
    assert (quick and rest) == (sized and quick)


@pytest.mark.parametrize(
    "path",
    ["docs/waiting.md", "README.md", "worker/nats_taskflow/cli/db/__init__.py", "examples/triage/agent.py", "tests/e2e/test_docs.py"],
)
def test_what_a_page_shows_has_its_tests_played(path: str) -> None:
    assert touches_pages(["worker/nats_taskflow/store/sqlite/rows.py", path])


def test_what_no_page_shows_has_not() -> None:
    assert not touches_pages(["worker/nats_taskflow/store/sqlite/rows.py", "tests/unit/test_waits.py", "Makefile"])


@pytest.mark.slow
def test_the_scenarios_are_listed_and_an_unknown_one_is_refused_with_the_list() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/faults", "--scenario"]
    done, refused = (
        subprocess.run([*command, name], cwd=ROOT, capture_output=True, text=True, check=False) for name in ("list", "kill-nobody")
    )
    assert (done.returncode, done.stderr) == (0, "")
    names = done.stdout.split()
    assert "kill-worker" in names
    assert names == sorted(names)
    assert refused.returncode == 4
    assert ", ".join(names) in refused.stderr


@pytest.mark.slow
def test_each_fault_family_is_played_by_the_quick_run() -> None:
    """A family is a row of the page's table: one of its scenarios is enough."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "tests/faults"]
    quick = {**os.environ, "TASKFLOW_TESTS": "quick"}
    done = subprocess.run(command, cwd=ROOT, env=quick, capture_output=True, text=True, check=False)
    played = {line.partition("::")[2].partition("[")[0] for line in done.stdout.splitlines() if "::" in line}
    page = (ROOT / "docs" / "fault-runs.md").read_text(encoding="utf-8").partition("## The scenarios")[2].partition("## ")[0]
    families = [re.findall(r"`([a-z-]+)`", row.split("|")[1]) for row in page.splitlines() if row.startswith("| `")]
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "tests" / "faults").glob("test_*.py")]
    tests = {name: test for text in sources for name, test in SCENARIO.findall(text)}
    assert [family for family in families if not any(tests[name] in played for name in family)] == [], done.stderr
