"""The longest first: what begins last ends last, and a test of a minute that begins last keeps one processor waiting for the other."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from xdist.scheduler import LoadGroupScheduling

TABLE = Path(__file__).with_name("durations.tsv")
SHORT = 0.5
"""Seconds from which on a test is in the table."""
MIDDLE = 1.0
"""Seconds that a test counts which starts processes and is not in the table: it may be new."""
_GROUP = re.compile(r'\bxdist_group\("([^"]+)"\)')


class InGroups(LoadGroupScheduling):  # type: ignore[misc]  # xdist ships no types
    """Hands tests out as `--dist loadgroup` should, a group's to one process, in the order in which they were collected.

    It reads the groups from the files: pytest-xdist 3.8 writes them into the tests' names, where pytest 9.2 does not let it any more, and
    says nothing (pytest-xdist#1386).
    """

    def _split_scope(self, nodeid: str) -> str:
        return group(self.config.rootpath, nodeid)


def group(root: Path, name: str) -> str:
    """Return the group that a test's file names, or the test's own name."""
    return _group_of(root / name.partition("::")[0]) or name


@cache
def _group_of(path: Path) -> str | None:
    found = _GROUP.search(path.read_text(encoding="utf-8"))
    return found[1] if found else None


def read(text: str) -> dict[str, float]:
    """Read the table: seconds by test."""
    rows = (line.split("\t", 1) for line in text.splitlines())
    return {name: float(seconds) for seconds, name in rows}


def written(durations: Mapping[str, float]) -> str:
    """Write the table, rounded to half seconds so that the next run changes little of it."""
    rounded = {name: round(seconds * 2) / 2 for name, seconds in durations.items() if seconds >= SHORT}
    return "".join(f"{seconds:.1f}\t{name}\n" for name, seconds in sorted(rounded.items(), key=lambda row: (-row[1], row[0])))


def longest_first(tests: Sequence[tuple[str, float]]) -> list[int]:
    """Return the places of the tests, each given as its group and its seconds: the longest group first, a group's own in their order."""
    total: dict[str, float] = defaultdict(float)
    for group, seconds in tests:
        total[group] += seconds
    first = {group: place for place, (group, _) in reversed(list(enumerate(tests)))}
    return sorted(range(len(tests)), key=lambda place: (-total[tests[place][0]], first[tests[place][0]], place))
