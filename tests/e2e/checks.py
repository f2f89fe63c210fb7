"""The invariants of RELIABILITY 2, each a function that returns its violations as sentences; none is good.

They look at what is left behind: a copy of the database after the worker has ended, and what lies in the streams.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from tests.e2e.stage import DEAD_LETTERS, EVENTS, INBOUND, Agent, Json, Sent, Stage
from worker.flow.fold import fold, folded
from worker.flow.lifecycle import NEXT, STATUS_AFTER, TERMINAL, EventKind, FlowStatus
from worker.flow.model import Flow, FlowEvent
from worker.store import rows
from worker.store.opening import APPLICATION_ID
from worker.store.queries import migrations

Violations = list[str]
Database = sqlite3.Connection
_FLOWS = """SELECT n, id, controller_id, goal, owner_session_key, requester_origin, current_step, status, cancel_requested, state_json,
  wait_json, wait_id, parked_us, progress_json, revision, seq, created_us, updated_us, parent_id, hops, set_aside FROM flows"""
_JOURNAL = """SELECT f.id, e.seq, e.revision, e.kind, e.payload_json, e.at_us, e.actor, e.status, e.previous_status, e.current_step,
  e.cause, e.correlation_id, e.trace FROM flow_events AS e JOIN flows AS f ON f.n = e.flow ORDER BY e.flow, e.seq"""


def journals(database: Database) -> dict[str, list[FlowEvent]]:
    """Return every flow's journal."""
    found: dict[str, list[FlowEvent]] = defaultdict(list)
    for row in database.execute(_JOURNAL):
        event = rows.event(row)
        found[event.flow_id].append(event)
    return found


def flows(database: Database) -> dict[str, Flow]:
    """Return every flow's row."""
    return {row[1]: rows.flow(row[1:]) for row in database.execute(_FLOWS)}


def counters(database: Database) -> dict[str, int]:
    """Return the maintained counters that are not zero."""
    return dict(database.execute("SELECT name, value FROM counters WHERE value <> 0").fetchall())


def outcomes(database: Database) -> Counter[str]:
    """Count the messages taken in, by their one outcome."""
    return Counter(dict(database.execute("SELECT outcome, count(*) FROM inbox GROUP BY outcome").fetchall()))


def exactly_one_effect(database: Database, accepted: Iterable[tuple[str, str]] = ()) -> Violations:
    """I-1: every accepted command `(agent, command id)` has one outcome; what is applied left its mark once, what is not left none.

    I-2: nothing an agent did came from a message that is not on record.
    """
    bad: Violations = []
    known = {
        (scope, key): outcome for scope, key, outcome in database.execute("SELECT scope, key, outcome FROM inbox WHERE key IS NOT NULL")
    }
    bad += [f"I-1: command {agent}/{key} was accepted and has no outcome" for agent, key in accepted if (f"cmd:{agent}", key) not in known]
    marks: Counter[tuple[str, str]] = Counter()
    places: dict[tuple[str, str], set[str]] = defaultdict(set)
    query = "SELECT f.id, e.kind, e.actor, e.cause FROM flow_events AS e JOIN flows AS f ON f.n = e.flow WHERE e.cause IS NOT NULL"
    for flow_id, kind, actor, cause in database.execute(query):
        if not actor.startswith("agent:"):
            continue
        scope = f"cmd:{actor.split(':')[1]}"
        marks[scope, f"{cause}\n{kind}"] += 1
        places[scope, cause].add(flow_id)
    bad += [f"I-1: {key!r} of {scope} had its effect {times} times" for (scope, key), times in marks.items() if times > 1]
    bad += [f"I-1: command {key} of {scope} changed several flows" for (scope, key), where in places.items() if len(where) > 1]
    bad += [
        f"I-2: the journal names command {key} of {scope}, which was never taken in" for scope, key in places if (scope, key) not in known
    ]
    bad += [
        f"I-1: command {key} of {scope} is {known[scope, key]}, yet it changed a flow"
        for scope, key in places
        if known.get((scope, key), "applied") != "applied"
    ]
    return bad


def conflicts_are_visible(database: Database) -> Violations:
    """I-3: another body under a used id is a conflict, and lies in the dead letters where it came from a stream."""
    query = """SELECT i.source_seq FROM inbox AS i LEFT JOIN dead_letters AS d ON d.seq = i.source_seq AND d.stream = i.source
      WHERE i.outcome = 'conflict' AND i.source_seq IS NOT NULL AND (d.n IS NULL OR d.reason <> 'conflict')"""
    return [f"I-3: message {seq} conflicts with an earlier one and is not in the dead letters" for (seq,) in database.execute(query)]


def duplicates_repeat_the_first(database: Database) -> Violations:
    """I-5: a repeated command is told, byte for byte, what the first was told."""
    query = """SELECT d.n FROM inbox AS d WHERE d.outcome = 'duplicate' AND EXISTS
      (SELECT 1 FROM inbox AS f WHERE f.digest = d.digest AND f.scope LIKE 'cmd:%') AND NOT EXISTS
      (SELECT 1 FROM inbox AS f WHERE f.digest = d.digest AND f.key IS NOT NULL AND f.result = d.result)"""
    return [f"I-5: the repeat in inbox row {n} was told something else than the first" for (n,) in database.execute(query)]


def journal_is_contiguous(journal: Mapping[str, list[FlowEvent]], known: Mapping[str, Flow]) -> Violations:
    """I-7, I-11: `seq` 1, 2, 3, …; revisions 0 … n, each written once; the last of both equal to the row's."""
    bad: Violations = []
    for flow_id, flow in known.items():
        events = journal.get(flow_id, [])
        if [event.seq for event in events] != list(range(1, flow.seq + 1)):
            bad.append(f"I-7: the journal of {flow_id} has the places {[event.seq for event in events]}, the row says {flow.seq}")
        revisions = [event.revision for event in events if event.kind is not EventKind.STEP_OBSERVED]
        if revisions != list(range(flow.revision + 1)):
            bad.append(f"I-7: the journal of {flow_id} has the revisions {revisions}, the row says {flow.revision}")
    return bad


def journal_gives_the_row(journal: Mapping[str, list[FlowEvent]], known: Mapping[str, Flow]) -> Violations:
    """I-8: folding a flow's journal gives exactly its row."""
    return [
        f"I-8: folding the journal of {flow_id} gives {folded(journal.get(flow_id, []))}, the row is {flow}"
        for flow_id, flow in known.items()
        if folded(journal.get(flow_id, [])) != flow
    ]


def only_legal_edges(journal: Mapping[str, list[FlowEvent]]) -> Violations:
    """I-9: only edges of the status table; nothing after the end; once cancellation is requested only `cancelled` follows."""
    bad: Violations = []
    for flow_id, events in journal.items():
        status: FlowStatus | None = None
        asked = False
        for event in events:
            after = STATUS_AFTER.get(event.kind, status)
            if status in TERMINAL:
                bad.append(f"I-9: {flow_id} had ended as {status}, and then {event.kind} came")
            if status is not None and after is not status and after not in NEXT[status]:
                bad.append(f"I-9: {flow_id} went from {status} to {after}")
            if asked and event.kind not in {EventKind.CANCELLED, EventKind.STEP_OBSERVED}:
                bad.append(f"I-9: {flow_id} did {event.kind} though its cancellation was requested")
            if (event.status, event.previous_status) != (after, status):
                bad.append(f"I-9: entry {event.seq} of {flow_id} says {event.previous_status} → {event.status}")
            asked = asked or event.kind is EventKind.CANCEL_REQUESTED
            status = after
    return bad


def file_is_whole(database: Database) -> Violations:
    """I-12: SQLite's own checks pass, and the file says whose it is."""
    said = {
        "integrity_check": [row[0] for row in database.execute("PRAGMA integrity_check")],
        "foreign_key_check": list(database.execute("PRAGMA foreign_key_check")),
        "application_id": database.execute("PRAGMA application_id").fetchone()[0],
        "user_version": database.execute("PRAGMA user_version").fetchone()[0],
    }
    wanted = {"integrity_check": ["ok"], "foreign_key_check": [], "application_id": APPLICATION_ID, "user_version": len(migrations())}
    return [f"I-12: {name} says {said[name]}, not {wanted[name]}" for name in wanted if said[name] != wanted[name]]


def a_wait_ends_once(journal: Mapping[str, list[FlowEvent]], database: Database) -> Violations:
    """I-13: each generation of a wait is ended at most once, and only by an end; I-15: by the pair it was opened for."""
    bad: Violations = []
    pairs: dict[tuple[str, int], set[tuple[str, str]]] = defaultdict(set)
    query = "SELECT f.id, w.wait_id, w.topic, w.correlation_id FROM waiters AS w JOIN flows AS f ON f.n = w.flow"
    for flow_id, wait_id, topic, correlation_id in database.execute(query):
        pairs[flow_id, wait_id].add((topic, correlation_id))
    for flow_id, events in journal.items():
        generation: int | None = None
        for event in events:
            if event.kind is EventKind.WAITING:
                generation = event.revision
            elif event.kind is EventKind.RESUMED and generation is None:
                bad.append(f"I-13: {flow_id} resumed at revision {event.revision} without a wait")
            elif event.kind is EventKind.RESUMED:
                meta = event.payload.get("patch", {}).get("resume_meta", {})
                pair = (meta.get("topic"), meta.get("correlation_id"))
                if meta.get("cause") == "event" and pair not in pairs[flow_id, generation or 0]:
                    bad.append(f"I-15: wait {generation} of {flow_id} was resumed by {pair}, which it did not wait for")
                generation = None
    query = """SELECT f.id, w.wait_id FROM waiters AS w JOIN flows AS f ON f.n = w.flow
      WHERE w.open = 1 AND (f.status <> 'waiting' OR f.wait_id <> w.wait_id)"""
    bad += [f"I-13: wait {wait_id} of {flow_id} is over and still open" for flow_id, wait_id in database.execute(query)]
    return bad


def outcomes_add_up(database: Database) -> Violations:
    """I-16: every message has one outcome, and the counters say what the rows say."""
    counted = counters(database)
    seen = {f"inbox.{name}": count for name, count in outcomes(database).items()}
    seen |= {f"flows.{status}": count for status, count in database.execute("SELECT status, count(*) FROM flows GROUP BY status")}
    held = database.execute("SELECT count(*) FROM held").fetchone()[0]
    seen |= {"held": held} if held else {}
    bad = [f"I-16: the counters say {counted}, the rows {seen}"] if counted != seen else []
    if held != outcomes(database)["held"]:
        bad.append(f"I-16: {held} replies are held, {outcomes(database)['held']} messages have the outcome held")
    return bad


def everything_was_taken_in(database: Database, last_seq: int, *, ignored: int = 0) -> Violations:
    """I-4, I-26: after the backlog is drained, every message of the inbound stream has its outcome, once."""
    taken = database.execute("SELECT count(DISTINCT source_seq) FROM inbox WHERE source = ?", (INBOUND,)).fetchone()[0]
    return (
        [] if taken == last_seq - ignored else [f"I-26: {INBOUND} has {last_seq} messages, {taken} have an outcome, {ignored} are ignored"]
    )


def pairs_are_unique(database: Database) -> Violations:
    """I-18: nobody shares a (topic, correlation id) with mode `one`."""
    query = "SELECT topic, correlation_id, count(*) FROM waiters WHERE open = 1 GROUP BY 1, 2 HAVING count(*) > 1 AND min(mode) <> 'all'"
    return [f"I-18: {count} open waits for ({topic}, {corr})" for topic, corr, count in database.execute(query)]


def events_are_in_order(events: Iterable[Sent]) -> Violations:
    """I-22: per flow, first occurrences are 1, 2, 3, …; a repeat is below the high-water mark and byte-identical."""
    bad: Violations = []
    seen: dict[str, bytes] = {}
    high: Counter[str] = Counter()
    for sent in events:
        said = sent.json
        flow_id, seq = said["subject"], int(said["sequence"])
        if said["id"] != f"{flow_id}:{seq}" or sent.headers.get("Nats-Msg-Id") != said["id"]:
            bad.append(f"I-22: the event at {sent.seq} is called {said['id']}, its header {sent.headers.get('Nats-Msg-Id')}")
        if sent.subject.split(".")[3:] != [flow_id, said["data"]["kind"]]:
            bad.append(f"I-22: the event {said['id']} of kind {said['data']['kind']} was published on {sent.subject}")
        if said["id"] in seen:
            if seen[said["id"]] != sent.body:
                bad.append(f"I-22: the event {said['id']} was repeated with other bytes")
        elif seq != high[flow_id] + 1:
            bad.append(f"I-22: the event {said['id']} came after {high[flow_id]}")
        seen[said["id"]] = sent.body
        high[flow_id] = max(high[flow_id], seq)
    return bad


def events_are_the_journal(journal: Mapping[str, list[FlowEvent]], events: Iterable[Sent]) -> Violations:
    """I-20, I-21: what is published is what was committed, all of it and nothing else; folding it rebuilds the flow."""
    committed = {f"{event.flow_id}:{event.seq}": event for entries in journal.values() for event in entries}
    published = {sent.json["id"]: sent.json for sent in events}
    bad = [f"I-20: the entry {name} was never published" for name in committed.keys() - published.keys()]
    bad += [f"I-21: the event {name} was published, but never committed" for name in published.keys() - committed.keys()]
    for name in committed.keys() & published.keys():
        said, entry = published[name]["data"], committed[name]
        if (said["kind"], said["revision"], said["status"], said["payload"]) != (entry.kind, entry.revision, entry.status, entry.payload):
            bad.append(f"I-21: the event {name} says {said}, the journal {entry}")
    return bad + _subscribers_see_the_flow(journal, published)


def _subscribers_see_the_flow(journal: Mapping[str, list[FlowEvent]], published: Mapping[str, Json]) -> Violations:
    """Fold the published payloads as a subscriber would, and compare with the fold of the journal (CONTRACT 4)."""
    bad = []
    for flow_id, entries in journal.items():
        told: Flow | None = None
        for entry in entries:
            said = published.get(f"{flow_id}:{entry.seq}")
            if said is None:
                break
            heard = msgspec.structs.replace(entry, kind=EventKind(said["data"]["kind"]), payload=said["data"]["payload"])
            told = fold(told, heard)
        else:
            if told != folded(entries):
                bad.append(f"CONTRACT 4: the events of {flow_id} give {told}")
    return bad


def outbox_is_drained(database: Database) -> Violations:
    """I-23: after quiescence everything committed is published, and the mark says so."""
    marks: dict[str, int] = dict(database.execute("SELECT outlet, n FROM published").fetchall())
    bad = []
    for outlet, table in (("events", "flow_events"), ("dead_letters", "dead_letters")):
        last = database.execute(f"SELECT coalesce(max(n), 0) FROM {table}").fetchone()[0]  # noqa: S608  our own two names
        if marks[outlet] != last:
            bad.append(f"I-23: {outlet} is published up to {marks[outlet]} of {last}")
    return bad


def dead_letters_are_out(database: Database, dead: Iterable[Sent]) -> Violations:
    """I-26: each dead letter of the database lies in its stream, with the raw body."""
    published = {sent.headers["Nats-Msg-Id"]: sent for sent in dead}
    bad = []
    for n, reason, body in database.execute("SELECT n, reason, body FROM dead_letters"):
        sent = published.get(f"dlq:{n}")
        if sent is None or sent.subject != f"taskflow.dlq.{reason}" or not body.startswith(sent.body):
            bad.append(f"I-26: dead letter {n} ({reason}) is not in {DEAD_LETTERS} as it should be: {sent}")
    return bad


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
    stage: Stage, agent: Agent, *, accepted: Iterable[tuple[str, str]] = (), ignored: int = 0, clean_logs: bool = True
) -> Violations:
    """Stop the worker in order if it runs, and check everything that is left behind."""
    if stage.running:
        code = await stage.stop()
        if code != 0:
            return [f"the worker ended with {code} at SIGTERM"]
    events = await stage.stream(EVENTS, agent)
    dead = await stage.stream(DEAD_LETTERS, agent)
    last = (await agent.js.stream_info(INBOUND)).state.last_seq
    with stage.database() as database:
        journal, known = journals(database), flows(database)
        found: Callable[..., Any]
        bad = exactly_one_effect(database, accepted)
        for found in (
            conflicts_are_visible,
            duplicates_repeat_the_first,
            file_is_whole,
            outcomes_add_up,
            pairs_are_unique,
            outbox_is_drained,
        ):
            bad += found(database)
        bad += journal_is_contiguous(journal, known) + journal_gives_the_row(journal, known) + only_legal_edges(journal)
        bad += a_wait_ends_once(journal, database) + everything_was_taken_in(database, last, ignored=ignored)
        bad += events_are_in_order(events) + events_are_the_journal(journal, events) + dead_letters_are_out(database, dead)
    return bad + (logs_are_clean(stage.logs()) if clean_logs else [])
