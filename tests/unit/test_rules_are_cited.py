"""Every rule of SEMANTICS 4 is cited by a test, so that a reader of a rule finds its proof: `grep -rn 'SEMANTICS.* R9' tests`."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

TESTS = Path(__file__).parents[1]
RULES = [f"R{n}" for n in range(15)]
_CITED = re.compile(r"SEMANTICS (?:\d, )*(R\d+(?:(?:, | to | and )(?:\d|R\d+))*)")


def citations() -> dict[str, set[str]]:
    """Return which files cite each rule."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in sorted(TESTS.rglob("test_*.py")):
        if path == Path(__file__):
            continue
        for cited in _CITED.findall(path.read_text(encoding="utf-8")):
            for rule in re.findall(r"R\d+", cited):
                found[rule].add(path.name)
    return found


def test_each_rule_is_cited_by_a_test_and_no_test_cites_a_rule_that_is_not_there() -> None:
    assert citations().keys() == set(RULES)
