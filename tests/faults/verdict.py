"""Compare what the clients of a run know with what is left behind, once everything has come to rest: lost, unexpected, recovered."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import msgspec
from nats.errors import Error as NatsError

from nats_taskflow.flow.lifecycle import EventKind
from nats_taskflow.flow.model import FlowEvent
from tests.conftest import SEED
from tests.e2e import checks
from tests.e2e.stage import EVENTS, Agent, Sent, Stage
from tests.eventually import eventually
from tests.faults.load import ENDS, Load, Part
from tests.faults.report import Row


class Verdict(msgspec.Struct, kw_only=True):
    """What came of a run. All lists hold sentences; `bad` is empty where nothing is wrong."""

    acknowledged: int
    in_doubt: int
    recovered: int
    lost: list[str]
    duplicated: list[str]
    violations: list[str]

    @property
    def bad(self) -> list[str]:
        """Everything that is wrong."""
        return [*self.lost, *self.duplicated, *self.violations]

    def row(self, scenario: str, **more: Any) -> Row:
        """Make the row of the table; `more` are the figures that the scenario alone knows."""
        return Row(
            scenario=scenario,
            seed=SEED,
            acknowledged=self.acknowledged,
            in_doubt=self.in_doubt,
            recovered=self.recovered,
            lost=len(self.lost),
            duplicated=len(self.duplicated),
            **more,
        )


class _Still(Exception):
    """Nothing has happened for long."""


async def at_rest(stage: Stage, load: Load, agent: Agent, *, within: float = 60.0, still: float | None = None) -> None:
    """Return once every flow has come to an end of its part and nothing is in hand, as far as the published events and the broker say.

    Raises `AssertionError` naming the flows that never get there: they are lost. `still`: give up when nothing has come for so long.
    """
    kinds: dict[str, list[str]] = defaultdict(list)
    seen, moved = 0, time.monotonic()

    async def all_there() -> bool:
        nonlocal seen, moved
        if still is not None and time.monotonic() - moved > still:
            raise _Still
        with suppress(NatsError, TimeoutError, OSError):
            for sent in await stage.stream(EVENTS, agent, after=seen):
                seen, moved = sent.seq, time.monotonic()
                _note(kinds, sent)
            return await agent.nothing_pending() and not unfinished(load.parts, kinds)
        return False

    began = time.monotonic()
    try:
        await eventually(all_there, within=within)
    except (AssertionError, _Still):
        raise AssertionError(f"not at rest after {time.monotonic() - began:.0f} s: {unfinished(load.parts, kinds)[:5]}") from None


def _note(kinds: dict[str, list[str]], sent: Sent) -> None:
    """Note an event's kind; repeats count once."""
    event = sent.json
    flow_id, seq = event["subject"], int(event["sequence"])
    if seq == len(kinds[flow_id]) + 1:
        kinds[flow_id].append(event["data"]["kind"])


def unfinished(parts: Sequence[Part], kinds: dict[str, list[str]]) -> list[str]:
    """Name the flows that are at no end of their parts."""
    return [
        f"{part.flow_id} plays {part.name!r} and is at {kinds.get(part.flow_id)}"
        for part in parts
        if not ENDS[part.name](tuple(kinds.get(part.flow_id, ())))
    ]


async def verdict(
    stage: Stage,
    load: Load,
    agent: Agent,
    *,
    at_least: int,
    within: float = 60.0,
    still: float | None = None,
    clean_logs: bool = True,
    ignored: int = 0,
) -> Verdict:
    """Wait for the end, stop the worker and judge. A run of fewer than `at_least` acknowledged operations is invalid: `AssertionError`."""
    restless = []
    try:
        await at_rest(stage, load, agent, within=within, still=still)
    except AssertionError as bad:
        restless = [str(bad)]
    ledger = load.ledger
    assert len(ledger.acknowledged) >= at_least, f"invalid run: {len(ledger.acknowledged)} operations acknowledged, {at_least} wanted"
    told = [operation.told() for operation in ledger.operations.values()]
    violations = await checks.violations(stage, agent, operations=told, complete=True, clean_logs=clean_logs, ignored=ignored)
    with stage.database() as database:
        taken = {
            key.rsplit("\n", 1)[-1]: outcome for key, outcome in database.execute("SELECT key, outcome FROM inbox WHERE key IS NOT NULL")
        }
        journals = checks.journals(database)
    causes = Counter((event.cause, event.kind) for entries in journals.values() for event in entries if event.actor.startswith("agent:"))
    caused = {str(cause) for cause, _ in causes}
    acknowledged = [operation for operation in ledger.acknowledged if operation.counts]
    lost = restless + load.failures
    lost += [f"{operation.id} was acknowledged and has no outcome" for operation in acknowledged if operation.id not in taken]
    lost += [
        f"{operation.id} is applied and left no mark"
        for operation in acknowledged
        if operation.verb != "reply" and taken.get(operation.id) == "applied" and operation.id not in caused
    ]
    names = {flow_id: [str(entry.kind) for entry in entries] for flow_id, entries in journals.items()}
    lost += unfinished(load.parts, names) + [wrong for part in load.parts for wrong in _wrong_payload(part, journals.get(part.flow_id, []))]
    doubted = [operation for operation in ledger.operations.values() if operation.in_doubt]
    return Verdict(
        acknowledged=len(ledger.acknowledged),
        in_doubt=len(ledger.doubted),
        recovered=sum(operation.id in taken for operation in doubted),
        lost=lost,
        duplicated=[f"{cause} had its effect {kind} {times} times" for (cause, kind), times in causes.items() if times > 1],
        violations=violations,
    )


def _wrong_payload(part: Part, entries: Sequence[FlowEvent]) -> list[str]:
    """Say whether a flow was resumed last with something else than what was sent to it."""
    if part.payload is None:
        return []
    patches = [entry.payload.get("patch", {}) for entry in entries if entry.kind is EventKind.RESUMED]
    got = patches[-1].get("resume_event") if patches else None
    return [] if got == part.payload else [f"I-15: {part.flow_id} plays {part.name!r} and was resumed with {got}, not {part.payload}"]
