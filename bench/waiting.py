"""Make databases with many waiting flows: the engine writes one, SQL copies its rows.

What is copied is all that the engine wrote about a flow: its row, its journal, its open wait, its two messages. Only ids and
correlation ids are counted up. `taskflow db check` finds nothing to complain about.
"""

from __future__ import annotations

import sqlite3
from datetime import timedelta
from pathlib import Path

from bench.load import TOPIC, flow_id
from nats_taskflow.flow.stimuli import Caller, ParkFlow, StartFlow
from nats_taskflow.units import rfc3339, to_micros
from nats_taskflow.wire.inbound import Identity
from tests.running import Running, VirtualClock, running

OWNER = "agent:kate:session:main"
DUE, ROUNDS = 100, 10
"""How many timers are due at once, and how often: an hour apart."""
_TABLES = ("flows", "flow_events", "waiters", "inbox")


async def replies(path: Path, count: int) -> Path:
    """Make a database with `count` flows that wait for `c-0`, `c-1`, … ; kept, so that a second call costs nothing."""
    if not path.exists():
        clock = VirtualClock()
        async with running(str(path), clock=clock) as run:
            await _parked(run, 0, {"kind": "external_event", "topic": TOPIC, "correlation_id": "c-0"})
        _multiplied(path, [(0, count)])
    return path


async def timers(path: Path, count: int) -> Path:
    """Make a database with `count` flows that wait for timers: `ROUNDS` times `DUE` an hour apart, the others in twenty days."""
    if not path.exists():
        clock = VirtualClock()
        soon = min(DUE * ROUNDS, count)
        firsts = [*range(0, soon, DUE), *([soon] if count > soon else [])]
        async with running(str(path), clock=clock) as run:
            for at, first in enumerate(firsts):
                ahead = timedelta(hours=at + 1) if first < soon else timedelta(days=20)
                await _parked(run, first, {"kind": "timer", "at": rfc3339(to_micros(clock.now + ahead))})
        ends = [*firsts[1:], count]
        _multiplied(path, [(first, end - first) for first, end in zip(firsts, ends, strict=True)])
    return path


async def _parked(run: Running, number: int, condition: dict[str, object]) -> None:
    """Start a flow and park it, as commands of an agent."""
    flow, agent = flow_id(number), {"actor": "agent:kate", "owner": OWNER}
    as_start, as_wait = (Caller(cause=f"{letter}-{number}", **agent) for letter in "sw")
    start = StartFlow(flow_id=flow, controller_id="kate/bench", goal="measure", owner_session_key=OWNER, caller=as_start)
    park = ParkFlow(flow_id=flow, condition=condition, nonce="n" * 32, caller=as_wait)
    for command in (start, park):
        identity = Identity("cmd:kate", command.caller.cause or "", b"d" * 32)
        outcome = await run.engine.submit(command, identity, source="api")
        assert outcome.error is None, outcome.error


def _multiplied(path: Path, parts: list[tuple[int, int]]) -> None:
    """Copy what was written about each first flow, `count` flows with it."""
    connection = sqlite3.connect(path, isolation_level=None)
    for pragma in ("synchronous = OFF", "cache_size = -200000", "wal_autocheckpoint = 100000"):
        connection.execute(f"PRAGMA {pragma}")
    for first, count in parts:
        connection.execute("BEGIN")
        for name in _TABLES:
            _copied(connection, name, first, count)
        connection.execute("COMMIT")
    connection.execute("UPDATE published SET n = (SELECT max(n) FROM flow_events) WHERE outlet = 'events'")
    connection.execute("UPDATE counters SET value = (SELECT count(*) FROM flows) WHERE name = 'flows.waiting'")
    connection.execute(
        "UPDATE counters SET value = waits.count FROM (SELECT wait_json ->> 'kind' AS kind, count(*) AS count FROM flows GROUP BY 1)"
        " AS waits WHERE name = 'waits.' || waits.kind"
    )
    connection.execute("UPDATE counters SET value = (SELECT count(*) FROM inbox) WHERE name = 'inbox.applied'")
    connection.execute(
        "UPDATE usage SET (open_flows, state_bytes) = (SELECT count(*), sum(length(CAST(state_json AS BLOB))) FROM flows)"  # of one agent
    )
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


def _copied(connection: sqlite3.Connection, table: str, first: int, count: int) -> None:
    """Copy one table's rows of a flow."""
    columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
    # A flow's copies come after everything there is, in their order; the other tables count by themselves.
    top = connection.execute("SELECT max(n) FROM flows").fetchone()[0]
    base = top if table == "flows" else top - count + 1
    ids = {"first": first, "flow": flow_id(first)}
    own, change = _rules(table, base)
    chosen = [name for name in columns if name != "n" or table == "flows"]
    values = ", ".join(change.get(name, f"t.{name}") for name in chosen)
    connection.execute(
        f"WITH RECURSIVE copy (i) AS (SELECT 1 WHERE :count > 1 UNION ALL SELECT i + 1 FROM copy WHERE i < :count - 1) "
        f"INSERT INTO {table} ({', '.join(chosen)}) "
        f"SELECT {values} FROM copy CROSS JOIN (SELECT * FROM {table} WHERE {own} ORDER BY n) AS t",
        {"count": count, **ids},
    )


def _rules(table: str, base: int) -> tuple[str, dict[str, str]]:
    """Say which rows belong to the first flow, and which columns change how."""
    flow = "printf('00000000-0000-7000-8000-%012x', :first + i)"
    pair = "printf('c-%d', :first + i)"

    def text(column: str) -> str:
        """Count up the ids in a JSON text."""
        correlated = f"replace(t.{column}, printf('\"c-%d\"', :first), printf('\"c-%d\"', :first + i))"
        return f"replace({correlated}, :flow, {flow})"

    number = f"{base} + i"
    if table == "flows":
        return "id = :flow", {"n": f"{base} + i", "id": flow, "wait_json": text("wait_json"), "state_json": text("state_json")}
    if table == "inbox":
        told = text("result").replace("t.result", "CAST(t.result AS TEXT)")
        return "key IN (printf('s-%d', :first), printf('w-%d', :first))", {
            "key": "substr(t.key, 1, 2) || (:first + i)",
            "result": f"CAST({told} AS BLOB)",
        }
    mine = "flow = (SELECT n FROM flows WHERE id = :flow)"
    if table == "waiters":
        return mine, {"flow": number, "correlation_id": pair}
    return mine, {
        "flow": number,
        "payload_json": text("payload_json"),
        "cause": "substr(t.cause, 1, 2) || (:first + i)",
        "correlation_id": f"iif(t.correlation_id IS NULL, NULL, {pair})",
    }
