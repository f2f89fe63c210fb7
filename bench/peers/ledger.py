"""The writes of a resume as an ordinary program makes them: awaited statements, one transaction for each message.

The same tables, indexes and settings as the worker's, and the same rows; only the totals that the worker maintains are left out.
"""

from __future__ import annotations

import hashlib
import json
import time
from typing import Any

import aiosqlite


async def opened(path: str) -> aiosqlite.Connection:
    """Open the database as the worker does."""
    connection = await aiosqlite.connect(path, isolation_level=None)
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "cache_size = -16384", "wal_autocheckpoint = 10000"):
        await connection.execute(f"PRAGMA {pragma}")
    return connection


async def resumed(db: aiosqlite.Connection, topic: str, body: dict[str, Any], raw: bytes) -> tuple[str, bytes] | None:
    """Resume the flow that waits for the reply, durably; returns its id and the event, or None for a repeat."""
    correlation_id, payload, now = body["correlation_id"], body["payload"], time.time_ns() // 1000
    key = f"{topic}\n{correlation_id}\n{correlation_id}"
    await db.execute("BEGIN IMMEDIATE")
    known = list(await db.execute_fetchall("SELECT 1 FROM inbox WHERE scope = 'reply' AND key = ?", (key,)))
    waiting = list(
        await db.execute_fetchall(
            "SELECT f.n, f.id, f.wait_id, f.state_json, f.revision, f.seq FROM waiters AS w JOIN flows AS f ON f.n = w.flow "
            "WHERE w.topic = ? AND w.correlation_id = ? AND w.open = 1",
            ("agent.delegate.reply", correlation_id),
        )
    )
    if known or not waiting:
        await db.execute("ROLLBACK")
        return None
    n, flow_id, wait_id, state, revision, seq = waiting[0]
    patch = {"resume_event": payload, "resume_meta": {"cause": "event", "topic": topic, "correlation_id": correlation_id, "at": now}}
    event = json.dumps({"patch": patch, "cause": "event"})
    await db.execute(
        "UPDATE flows SET status = 'running', state_json = ?, wait_json = NULL, wait_id = NULL, parked_us = NULL, revision = ?, seq = ?, "
        "updated_us = max(updated_us, ?) WHERE n = ? AND revision = ?",
        (json.dumps({**json.loads(state), **patch}), revision + 1, seq + 1, now, n, revision),
    )
    await db.execute(
        "INSERT INTO flow_events (flow, seq, revision, kind, payload_json, at_us, actor, cause, status, previous_status, current_step, "
        "epoch) VALUES (?, ?, ?, 'resumed', ?, ?, 'peer', ?, 'running', 'waiting', 'init', 1)",
        (n, seq + 1, revision + 1, event, now, key),
    )
    await db.execute("UPDATE waiters SET open = 0 WHERE flow = ? AND wait_id = ? AND open = 1", (n, wait_id))
    await db.execute(
        "INSERT INTO inbox (scope, key, digest, outcome, result, source, at_us) VALUES ('reply', ?, ?, 'resumed', ?, 'BENCH_IN', ?)",
        (key, hashlib.sha256(raw).digest(), json.dumps({"ok": True, "flow": flow_id}).encode(), now),
    )
    await db.execute("COMMIT")
    return flow_id, json.dumps({"id": flow_id, "seq": seq + 1, "data": json.loads(event)}).encode()
