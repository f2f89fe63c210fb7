"""`taskflow check` and `taskflow doctor` judge a worker by the same figures."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from click.testing import CliRunner

from nats_taskflow.cli import taskflow
from nats_taskflow.cli.doctor import broker
from nats_taskflow.cli.verdict import FIGURES, Figure

NAMES = [figure.name for figure in FIGURES]


class Worker:
    """A worker that is well, but for its figures."""

    def __init__(self, **figures: int) -> None:
        self.figures = dict.fromkeys(NAMES, 0) | figures

    async def ask_as_agent(self, agent: str, verb: str, **fields: Any) -> dict[str, Any]:
        raise NotImplementedError

    async def ask(self, verb: str, **fields: Any) -> dict[str, Any]:
        return {
            "now": datetime.now(UTC).isoformat(),
            "version": "0.1.0",
            "worker": {"pid": 7, "up_seconds": 9, "store": "flows.db", "connected": True},
            "flows": {"waiting": 3},
            "held": 0,
            "waits": {"overdue": self.figures["overdue"]},
            "unpublished": {"events": self.figures["unpublished"], "dead_letters": 0},
            "dead_letters": self.figures["dead_letters"],
            "set_aside": self.figures["set_aside"],
        }


def checked(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> tuple[int, dict[str, Any]]:
    """Return how `taskflow check` ends, and what it prints as JSON."""

    @asynccontextmanager
    async def canned(*_: Any) -> AsyncIterator[Worker]:
        yield worker

    monkeypatch.setattr("nats_taskflow.cli.session.open_session", canned)
    ended = CliRunner().invoke(taskflow, ["check", "--format", "json"], prog_name="taskflow")
    return ended.exit_code, json.loads(ended.stdout)


def warned(worker: Worker) -> list[tuple[str, str]]:
    """Return what the doctor warns of."""
    return [(verdict.text, verdict.fix) for verdict in asyncio.run(broker._worker(worker))[0] if verdict.level != "ok"]


@pytest.mark.parametrize("figure", FIGURES, ids=NAMES)
def test_both_warn_from_the_same_number_on(figure: Figure, monkeypatch: pytest.MonkeyPatch) -> None:
    below, at = Worker(**{figure.name: figure.warning - 1}), Worker(**{figure.name: figure.warning})
    assert warned(below) == []
    ((text, fix),) = warned(at)
    assert fix
    assert checked(below, monkeypatch) == (0, {"level": "ok", "why": "", "figures": below.figures | {"waiting": 3, "held": 0}})
    assert checked(at, monkeypatch) == (1, {"level": "warning", "why": text, "figures": at.figures | {"waiting": 3, "held": 0}})


@pytest.mark.parametrize("figure", FIGURES, ids=NAMES)
def test_the_check_is_critical_from_the_second_limit_on(figure: Figure, monkeypatch: pytest.MonkeyPatch) -> None:
    code, said = checked(Worker(**{figure.name: figure.critical}), monkeypatch)
    assert (code, said["level"]) == (2, "critical")
    assert said["why"].endswith(figure.plural)
