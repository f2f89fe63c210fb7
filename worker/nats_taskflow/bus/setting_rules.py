"""Compare the settings of a stream or consumer with a table of rules.

Pure: JSON in, broken rules out.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

Json = dict[str, Any]
NS_PER_S = 1_000_000_000
"""JetStream gives durations in nanoseconds."""


class Rule(NamedTuple):
    """What a setting must be, and how to repair it.

    `absent`: what the server means where it leaves the setting out.
    """

    setting: str
    must_be: Any
    absent: Any
    repair: str = ""


class BrokenRule(NamedTuple):
    """A rule, and what the setting is instead."""

    rule: Rule
    actual: Any

    def __str__(self) -> str:
        return f"{self.rule.setting} is {_shown(self.actual)}, it must be {_shown(self.rule.must_be)}"


def broken_rules(table: Iterable[Rule], config: Json) -> list[BrokenRule]:
    """List the rules that a configuration breaks, in the order of the table."""
    broken = []
    for rule in table:
        actual = config.get(rule.setting, rule.absent)
        if rule.setting.startswith("max_") and actual == 0:
            actual = -1  # older servers write "no limit" as 0
        if (actual or None) != (rule.must_be or None):
            broken.append(BrokenRule(rule, actual))
    return broken


def _shown(value: Any) -> str:
    """Write a setting as configuration files do."""
    if value is None or value == []:
        return "unset"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(map(str, value)) + "]"
    return str(value)
