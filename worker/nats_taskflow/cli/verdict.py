"""Judge a worker by its figures, for `taskflow check` and `taskflow doctor`."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from nats_taskflow.cli.protocol import Json
from nats_taskflow.text import counted


class Verdict(NamedTuple):
    """A finding of `taskflow doctor`.

    `level`: ok, warn or fail. `fix`: what to do, empty where all is well.
    """

    name: str
    level: str
    text: str
    fix: str = ""


class Figure(NamedTuple):
    """A figure of `stats` that should be small.

    It is a warning from `warning` on, critical from `critical` on.
    """

    name: str
    value: Callable[[Json], int]
    warning: int
    critical: int
    singular: str
    plural: str
    fix: str

    def trouble(self, stats: Json) -> str:
        """Return how many there are, in words."""
        return counted(self.value(stats), self.singular, self.plural)


FIGURES = (
    Figure(
        name="overdue",
        value=lambda stats: stats["waits"]["overdue"],
        warning=1,
        critical=100,
        singular="overdue flow",
        plural="overdue flows",
        fix="wait a moment and look again; then read the worker's log",
    ),
    Figure(
        name="unpublished",
        value=lambda stats: sum(stats["unpublished"].values()),
        warning=1000,
        critical=100_000,
        singular="event not published",
        plural="events not published",
        fix="look again: they go out by themselves once the broker takes them; then read the worker's log",
    ),
    Figure(
        name="dead_letters",
        value=lambda stats: stats["dead_letters"],
        warning=1,
        critical=10_000,
        singular="dead letter",
        plural="dead letters",
        fix="taskflow dlq list",
    ),
    Figure(
        name="set_aside",
        value=lambda stats: stats["set_aside"],
        warning=1,
        critical=10,
        singular="flow set aside",
        plural="flows set aside",
        fix="taskflow flow list --set-aside; taskflow why FLOW",
    ),
)
