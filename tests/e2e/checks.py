"""Check the invariants over what a stage leaves behind: a copy of the database after the worker has ended, and its streams."""

from __future__ import annotations

import json
import sqlite3
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from nats_taskflow.flow.model import FlowEvent
from nats_taskflow.store.invariants import (
    INVARIANTS,
    Evidence,
    InboundProgress,
    Ledger,
    LedgerMessage,
)
from nats_taskflow.store.invariants import violations as found_in
from nats_taskflow.store.sqlite import rows
from tests.e2e.stage import DEAD_LETTERS, EVENTS, INBOUND, Agent, Sent, Stage
from tests.faults.client_invariants import sets, with_clients
from tests.faults.client_record import ClientRecord, Operation, Sets, command

Violations = list[str]
Database = sqlite3.Connection
_JOURNAL = """SELECT f.id, e.seq, e.revision, e.kind, e.payload_json, e.at_us, e.actor, e.status, e.previous_status, e.current_step,
  e.cause, e.correlation_id, e.trace FROM flow_events AS e JOIN flows AS f ON f.n = e.flow ORDER BY e.flow, e.seq"""


def journals(database: Database) -> dict[str, list[FlowEvent]]:
    """Return every flow's journal."""
    found: dict[str, list[FlowEvent]] = defaultdict(list)
    for row in database.execute(_JOURNAL):
        event = rows.event(row)
        found[event.flow_id].append(event)
    return found


def counters(database: Database) -> dict[str, int]:
    """Return the maintained counters that are not zero."""
    return dict(database.execute("SELECT name, value FROM counters WHERE value <> 0").fetchall())


def outcomes(database: Database) -> Counter[str]:
    """Count the messages taken in, by their one outcome."""
    return Counter(dict(database.execute("SELECT outcome, count(*) FROM inbox GROUP BY outcome").fetchall()))


def outbox_is_drained(database: Database) -> Violations:
    """I-23: after quiescence everything committed is published, and the mark says so."""
    return of_database(database, "I-23")


def of_database(database: Database, *numbers: str) -> Violations:
    """Return what does not hold in a database on which nobody works any more; of some invariants, or of all."""
    wanted = tuple(one for one in INVARIANTS if not numbers or one.number in numbers)
    return [str(one) for one in found_in(Evidence(database, now=now(), settled=True), invariants=wanted)]


def logs_are_clean(logs: Iterable[Path]) -> Violations:
    """One record is one line of JSON, and none tells of a defect. A killed worker's last line may be cut off."""
    bad = []
    for log in logs:
        text = log.read_text(encoding="utf-8", errors="replace")
        for line in text.split("\n")[:-1]:
            try:
                record = json.loads(line)
            except ValueError:
                bad.append(f"log: {log.name} has a line that is no record: {line[:200]}")
                continue
            if "exception" in record or record.get("level") in {"error", "critical"}:
                bad.append(f"log: {log.name}: {line[:2000]}")
    return bad


async def violations(
    stage: Stage,
    agent: Agent,
    *,
    accepted: Iterable[tuple[str, str]] = (),
    operations: Iterable[Operation] = (),
    complete: bool = False,
    ignored: int = 0,
    clean_logs: bool = True,
) -> Violations:
    """Stop the worker in order if it runs, and check everything that is left behind.

    `accepted`: commands `(agent, command id)` that were acknowledged; `operations`: what clients know in more detail, `complete` where
    nobody else did anything; `ignored`: inbound messages that are none of the worker's.
    """
    if stage.running:
        code = await stage.stop()
        if code != 0:
            return [f"the worker ended with {code} at SIGTERM"]
    state = (await agent.js.stream_info(INBOUND)).state
    taken = InboundProgress(stream=INBOUND, first=max(state.first_seq, 1), settled=state.last_seq, ignored=ignored)
    events, letters = [Ledger(map(message, await stage.stream(name, agent))) for name in (EVENTS, DEAD_LETTERS)]
    with stage.database() as database:
        client = record(accepted, operations, complete=complete)
        evidence = Evidence(database, now=now(), settled=True, events=events, letters=letters, taken=taken)
        bad = [str(one) for one in found_in(evidence, invariants=with_clients(client))]
    return bad + (logs_are_clean(stage.logs()) if clean_logs else [])


def known_sets(database: Database, operations: Iterable[Operation], *, complete: bool = True) -> Sets:
    """Say which operations were lost, which recovered, and what was never asked for."""
    return sets(Evidence(database, now=now()), ClientRecord(operations=tuple(operations), complete=complete))


def record(accepted: Iterable[tuple[str, str]], operations: Iterable[Operation], *, complete: bool) -> ClientRecord:
    """Put together what clients know."""
    return ClientRecord(operations=(*(command(*one) for one in accepted), *operations), complete=complete)


def message(sent: Sent) -> LedgerMessage:
    """Return a message as the ledger takes it."""
    return LedgerMessage(sent.seq, sent.subject, sent.headers, sent.body)


def now() -> int:
    """Return the time in microseconds."""
    return time.time_ns() // 1000
