"""Each invariant sees what is planted against it in a healthy database, and a healthy one has no violation."""

# ruff: noqa: S608  the statements are made of this file's own words

from __future__ import annotations

import asyncio
import inspect
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from docs.generate.invariants import scope_of
from nats_taskflow.store.invariants import (
    INVARIANTS,
    Evidence,
    InboundProgress,
    Ledger,
    LedgerMessage,
    looked_at,
    violations,
)
from tests.eventually import eventually
from tests.faults import client_invariants
from tests.faults.client_invariants import sets, time_goes_forward, with_clients
from tests.faults.client_record import ClientRecord, Operation, command, reply
from tests.service.line import TOPIC, Line, living

ROOT = Path(__file__).parents[2]
SECOND = 1_000_000


class Healthy(msgspec.Struct, frozen=True):
    """What a worker left behind that did a bit of everything."""

    path: Path
    now: int
    last: int
    events: list[LedgerMessage]
    letters: list[LedgerMessage]
    flows: dict[str, str]


async def a_bit_of_everything(path: Path) -> Healthy:
    """Let a worker live through one of each: replies early, late and twice, timers, conflicts, dead letters, children, delegates."""
    async with living(path) as line:
        flows = {
            "done": await line.parked("c-1"),
            "parked": await line.parked("c-2", timeout="2h"),
            "watcher": await line.started(),
            "awaited": await line.started(),
            "timed": await line.started(),
            "both": await line.started(),
            "delegating": await line.started(),
            "parent": await line.started(),
            "asked": await line.parked("c-3"),
            "early": await line.started(),
            "timed_out": await line.parked("c-4", timeout="10s"),
        }
        await line.reply(1, event_id="r-1")
        await line.reply(1, event_id="r-1b")
        await line.reply({"early": True}, "c-5", event_id="r-5")
        await line.reply({"never": True}, "c-99", event_id="r-99")
        leaf = {"kind": "external_event", "topic": TOPIC}
        pair = [{**leaf, "correlation_id": "c-6"}, {**leaf, "correlation_id": "c-7"}]
        at = "2026-11-21T10:00:05Z"
        for name, wait in (
            ("watcher", {"kind": "flow", "flow_id": flows["awaited"]}),
            ("timed", {"kind": "timer", "at": at}),
            ("both", {"kind": "all_of", "conditions": [*pair, {"kind": "timer", "at": at}]}),
            ("early", {**leaf, "correlation_id": "c-5"}),
        ):
            assert (await line.done("wait", flow_id=flows[name], wait_condition=wait))["ok"]
        await line.reply({"leaf": 0}, "c-6", event_id="r-6")
        assert (await line.done("delegate", flow_id=flows["delegating"], to="svc.nobody", payload={}))["ok"]
        assert (await line.done("start", controller_id="k", goal="g", parent_flow_id=flows["parent"]))["ok"]
        assert (await line.done("cancel", flow_id=flows["parent"], reason="enough"))["ok"]
        assert (await line.done("observe", flow_id=flows["awaited"], run_id="run-1", task="t", status="running"))["ok"]
        for patch in ({"n": 1}, {"n": 1}, {"n": 2}):
            body = {"command_id": "twice", "flow_id": flows["awaited"], "patch": patch}  # no header: the broker would drop a repeat
            await line.agent.publish("taskflow.cmd.kate.advance", msgspec.json.encode(body), {})
        await line.agent.publish("taskflow.cmd.kate.advance", b"{", {"Nats-Msg-Id": "broken"})
        refused = await line.done("finish", "too-late", flow_id=flows["parent"])
        assert not refused["ok"]
        assert (await line.done("finish", "finish-1", flow_id=flows["done"], final_state={"done": True}))["ok"]
        await line.agent.publish("taskflow.cmd.bob.start", b'{"controller_id": "b", "goal": "g"}', {"Nats-Msg-Id": "bob-1"})
        line.advance(seconds=20)
        line.services.waits._woken.set()
        await eventually(lambda: timed_out(line, flows["timed_out"]))
        await line.settled()
        last = line.broker.streams["TASKFLOW_IN"].last_seq
    # After the end: until then something may be on its way.
    events, letters = [[LedgerMessage(m.seq, m.subject, m.headers, m.body) for m in await read()] for read in (line.events, line.dead)]
    return Healthy(path, line.clock.us, last, events, letters, flows)


async def timed_out(line: Line, flow_id: str) -> bool:
    return (await line.flow(flow_id)).status == "running"


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Healthy:
    return asyncio.run(a_bit_of_everything(tmp_path_factory.mktemp("healthy") / "flows.db"))


@pytest.fixture
def database(healthy: Healthy, tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """A copy to plant in; SQLite lets every constraint be broken."""
    copy = tmp_path / "planted.db"
    shutil.copy(healthy.path, copy)
    connection = sqlite3.connect(copy, isolation_level=None)
    connection.execute("PRAGMA ignore_check_constraints = ON")
    yield connection
    connection.close()


def evidence(healthy: Healthy, database: sqlite3.Connection, **changes: Any) -> Evidence:
    """Gather all the evidence there is."""
    gathered: dict[str, Any] = {
        "now": healthy.now,
        "settled": True,
        "events": Ledger(healthy.events),
        "letters": Ledger(healthy.letters),
        "taken": InboundProgress(stream="TASKFLOW_IN", first=1, settled=healthy.last),
        **changes,
    }
    return Evidence(database, **gathered)


def found(gathered: Evidence) -> list[str]:
    return [str(one) for one in violations(gathered)]


def test_a_healthy_database_has_no_violation(healthy: Healthy, database: sqlite3.Connection) -> None:
    outcomes = dict(database.execute("SELECT outcome, count(*) FROM inbox GROUP BY 1"))
    assert outcomes.keys() >= {"applied", "resumed", "progressed", "held", "duplicate", "conflict", "rejected", "dead"}, outcomes
    assert found(evidence(healthy, database)) == []


class Plant(msgspec.Struct, frozen=True):
    """A violation to plant, the invariants that complain, the one it is about first, and what that one says."""

    name: str
    sql: tuple[str, ...]
    numbers: tuple[str, ...]
    says: str


def planted(name: str, numbers: str, says: str, *sql: str) -> Plant:
    return Plant(name, sql, tuple(numbers.split()), says)


# The row number of a flow; `format` puts its id in.
N = {
    name: f"(SELECT n FROM flows WHERE id = '{{{name}}}')"
    for name in ("done", "parked", "awaited", "early", "timed", "both", "parent", "asked", "watcher", "delegating", "timed_out")
}
COLUMNS = "kind, payload_json, at_us, actor, cause, status, previous_status, current_step, correlation_id, trace, epoch"


def again(where: str, *, seq: str = "seq + 100", revision: str = "revision + 100") -> str:
    """Write journal rows once more, at another place."""
    return (
        f"INSERT INTO flow_events (flow, seq, revision, {COLUMNS}) SELECT flow, {seq}, {revision}, {COLUMNS} FROM flow_events WHERE {where}"
    )


LAST = "(SELECT max(n) FROM flow_events)"

PLANTS = (
    planted(
        "a command takes effect twice",
        "I-1",
        "had its effect (state_updated) 2 times",
        again(
            f"flow = {N['awaited']} AND cause = 'twice'", seq="(SELECT seq + 1 FROM flows AS f WHERE f.n = flow)", revision="revision + 1"
        ),
        f"UPDATE flows SET revision = revision + 1, seq = seq + 1, updated_us = updated_us WHERE n = {N['awaited']}",
    ),
    planted(
        "a command changes two flows",
        "I-1",
        "changed several flows",
        f"UPDATE flow_events SET cause = 'finish-1' WHERE flow = {N['parked']} AND kind = 'waiting'",
    ),
    planted(
        "a refused command changes a flow",
        "I-1 I-16",
        "is rejected, yet it changed",
        "UPDATE inbox SET outcome = 'rejected' WHERE key = 'finish-1'",
    ),
    planted(
        "a client is told of a change that is not kept",
        "I-1",
        "was told of revision 99",
        "UPDATE inbox SET result = CAST(json_set(CAST(result AS TEXT), '$.flow.revision', 99) AS BLOB) WHERE key = 'finish-1'",
    ),
    planted(
        "a command comes from nowhere",
        "I-2",
        "which was never taken in",
        "UPDATE flow_events SET cause = 'nobody-sent-this' WHERE cause = 'finish-1'",
    ),
    planted("a reply comes from nowhere", "I-2", "names reply r-nowhere", "UPDATE flow_events SET cause = 'r-nowhere' WHERE cause = 'r-1'"),
    planted(
        "a conflict is not buried",
        "I-3",
        "conflicts with an earlier one",
        "UPDATE dead_letters SET reason = 'other' WHERE reason = 'conflict'",
    ),
    planted("another body is taken for a repeat", "I-3", "repeats nothing", "UPDATE inbox SET digest = x'00' WHERE outcome = 'duplicate'"),
    planted("a repeat is told something else", "I-5", "something else", "UPDATE inbox SET result = x'7b7d' WHERE outcome = 'duplicate'"),
    planted(
        "the first journal row is lost",
        "I-7 I-8 I-9",
        "lacks the places 2",
        f"DELETE FROM flow_events WHERE flow = {N['awaited']} AND seq = 2",
    ),
    planted(
        "the last journal row is lost",
        "I-7 I-8",
        "lacks the places",
        f"DELETE FROM flow_events WHERE flow = {N['done']} AND kind = 'finished'",
    ),
    planted(
        "a state is changed past the journal", "I-8 I-16", "state_json", f"UPDATE flows SET state_json = '{{{{}}}}' WHERE n = {N['done']}"
    ),
    planted("a row cannot be read", "I-8 I-16", "cannot be read", f"UPDATE flows SET state_json = '{{{{' WHERE n = {N['done']}"),
    planted(
        "a journal row cannot be read",
        "I-8",
        "cannot be read",
        f"UPDATE flow_events SET payload_json = '[' WHERE flow = {N['done']} AND seq = 1",
    ),
    planted(
        "a flow goes on after its end",
        "I-9 I-1 I-8",
        "had ended as finished",
        again(
            f"flow = {N['done']} AND kind = 'started'",
            seq="(SELECT seq + 1 FROM flows AS f WHERE f.n = flow)",
            revision="(SELECT f.revision + 1 FROM flows AS f WHERE f.n = flow)",
        ),
        f"UPDATE flows SET revision = revision + 1, seq = seq + 1 WHERE n = {N['done']}",
    ),
    planted(
        "a flow takes an edge that is none",
        "I-9",
        "went from created to waiting",
        f"UPDATE flow_events SET kind = 'state_updated' WHERE flow = {N['asked']} AND kind = 'started'",
    ),
    planted(
        "a revision is written twice",
        "I-11 I-7 I-8",
        "was written more than once",
        f"UPDATE flow_events SET revision = 1 WHERE flow = {N['awaited']} AND kind = 'state_updated'",
    ),
    planted("a step belongs to nobody", "I-12", "belongs to no row of flows", "UPDATE flow_steps SET flow = 4711"),
    planted("the file says it is another program's", "I-12", "application_id says 1", "PRAGMA application_id = 1"),
    planted(
        "pages belong to nothing",
        "I-12",
        "integrity_check says",
        "PRAGMA writable_schema = ON",
        "DELETE FROM sqlite_schema WHERE name = 'flows_by_status'",
        "PRAGMA writable_schema = RESET",
    ),
    planted("a wait that is over stays open", "I-13", "is over and still open", f"UPDATE waiters SET open = 1 WHERE flow = {N['done']}"),
    planted(
        "a wait ends twice",
        "I-13 I-1 I-7 I-8 I-9",
        "without a wait",
        again(f"flow = {N['early']} AND kind = 'resumed'", seq="seq + 1", revision="revision + 1"),
    ),
    planted("a waiter is lost", "I-14", "no reply can find it", f"DELETE FROM waiters WHERE flow = {N['parked']}"),
    planted("a leaf is closed too early", "I-14", "no reply can find it", f"UPDATE waiters SET open = 0 WHERE flow = {N['both']}"),
    planted(
        "a reply is held beside its wait",
        "I-14",
        "is held, though",
        "UPDATE held SET correlation_id = 'c-2' WHERE correlation_id = 'c-99'",
    ),
    planted(
        "the end of a flow goes unheard",
        "I-14",
        "waits for the end of",
        f"UPDATE waiters SET correlation_id = '{{done}}' WHERE flow = {N['watcher']}",
    ),
    planted(
        "a reply ends another wait",
        "I-15",
        "which it did not wait for",
        f"UPDATE waiters SET correlation_id = 'c-other' WHERE flow = {N['done']}",
    ),
    planted(
        "a counter is off", "I-16", "the counter inbox.applied says", "UPDATE counters SET value = value + 1 WHERE name = 'inbox.applied'"
    ),
    planted(
        "a wait is not counted",
        "I-16",
        "the counter waits.external_event says",
        "UPDATE counters SET value = value - 1 WHERE name = 'waits.external_event'",
    ),
    planted("a quota is off", "I-16", "counts other replies than are held", "UPDATE held_tenants SET held = held + 1"),
    planted("a topic's share is off", "I-16", "other replies are counted than are held", "UPDATE held_topics SET held = held + 1"),
    planted("a quota counts nothing", "I-16", "and none is held", "INSERT INTO held_tenants (tenant, held) VALUES ('agent:nobody', 1)"),
    planted("an agent's flows are miscounted", "I-16", "open flows of agent", "UPDATE usage SET open_flows = open_flows + 1"),
    planted("an agent's states are miscounted", "I-16", "bytes of states", "UPDATE usage SET state_bytes = state_bytes + 1"),
    planted("an agent without flows is counted", "I-16", "agent nobody", "INSERT INTO usage VALUES ('nobody', 0, 1)"),
    planted("a held reply is lost", "I-16", "the counter held says", "DELETE FROM held WHERE correlation_id = 'c-99'"),
    planted(
        "a timer fires early",
        "I-17 I-8",
        "before its time",
        f"UPDATE flow_events SET at_us = at_us - 60000000 WHERE flow = {N['timed']} AND kind = 'resumed'",
    ),
    planted(
        "a timeout comes early",
        "I-17 I-8",
        "before its time",
        f"UPDATE flow_events SET at_us = at_us - 60000000 WHERE flow = {N['timed_out']} AND kind = 'resumed'",
    ),
    planted(
        "the timer of a leaf fires early",
        "I-17 I-8",
        "before its time",
        f"UPDATE flow_events SET at_us = at_us - 60000000 WHERE flow = {N['both']} AND kind = 'wait_progressed' AND actor = 'worker'",
    ),
    planted("a timer is lost", "I-17", "is due at no time by its row", f"UPDATE flows SET due_us = NULL WHERE n = {N['parked']}"),
    planted(
        "two wait for one pair",
        "I-18 I-14",
        "2 open waits for",
        "DROP INDEX one_waiter_per_pair",
        f"UPDATE waiters SET correlation_id = 'c-2' WHERE flow = {N['asked']}",
    ),
    planted(
        "a damaged flow stays in the timers' way",
        "I-19 I-8",
        "would still be looked at",
        f"UPDATE flows SET set_aside = 'damaged' WHERE n = {N['parked']}",
    ),
    planted("a request goes out for a wait that is over", "I-20", "is still to be sent", "UPDATE outgoing SET wait_id = wait_id + 1"),
    planted("the mark is ahead of the journal", "I-23", "would be skipped", "UPDATE published SET n = n + 1000"),
    planted(
        "an unpublished event is deleted",
        "I-24 I-7 I-8",
        "of events above",
        f"UPDATE published SET n = {LAST} - 1 WHERE outlet = 'events'",
        f"DELETE FROM flow_events WHERE n = {LAST}",
    ),
    planted(
        "a message is forgotten too early",
        "I-24",
        "younger than messages are remembered",
        "DELETE FROM inbox WHERE key = 'too-late'",
    ),
    planted(
        "an old worker goes on writing",
        "I-25",
        "had taken over",
        "UPDATE meta SET value = 9 WHERE name = 'epoch'",
        f"UPDATE flow_events SET epoch = 3 WHERE n = {LAST} / 2",
    ),
    planted("a row comes from a worker yet to come", "I-25", "has been opened by 1", "UPDATE flow_events SET epoch = 2"),
    planted("a dead letter is lost", "I-26", "is not in the dead letters", "DELETE FROM dead_letters WHERE reason = 'malformed'"),
    planted(
        "an agent changes another one's flow",
        "I-29 I-2",
        "which belongs to",
        f"UPDATE flow_events SET actor = 'agent:eve' WHERE flow = {N['done']} AND kind = 'finished'",
    ),
    planted(
        "an agent waits on another one's topic",
        "I-29 I-14",
        "belongs to another agent",
        f"UPDATE waiters SET topic = 'taskflow.reply.eve' WHERE flow = {N['parked']}",
    ),
)


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.name)
def test_what_is_planted_is_found(healthy: Healthy, database: sqlite3.Connection, plant: Plant) -> None:
    for sql in plant.sql:
        database.execute(sql.format(**healthy.flows))
    sentences = found(Evidence(database, now=healthy.now))
    assert {sentence.partition(":")[0] for sentence in sentences} == set(plant.numbers), sentences
    assert any(sentence.startswith(f"{plant.numbers[0]}:") and plant.says in sentence for sentence in sentences), sentences


def edited(change: Callable[[dict[str, Any]], Any]) -> Callable[[LedgerMessage], LedgerMessage]:
    """Return what changes an event's body."""

    def edit(message: LedgerMessage) -> LedgerMessage:
        event = msgspec.json.decode(message.body)
        change(event)
        return replace(message, body=msgspec.json.encode(event))

    return edit


def with_message(messages: list[LedgerMessage], at: int, change: Callable[[LedgerMessage], LedgerMessage]) -> list[LedgerMessage]:
    """Return the messages with one of them changed."""
    return [change(message) if place == at else message for place, message in enumerate(messages)]


def repeated(
    messages: list[LedgerMessage], at: int, change: Callable[[LedgerMessage], LedgerMessage] = lambda message: message
) -> list[LedgerMessage]:
    """Return the messages, one of them published once more at the end."""
    return [*messages, change(replace(messages[at], seq=messages[-1].seq + 1))]


def stranger(message: LedgerMessage) -> LedgerMessage:
    """Return the event as if it were of a flow that never was."""
    other = "01a20000-0000-7000-8000-000000000000"
    known = msgspec.json.decode(message.body)["subject"]
    headers = {"Nats-Msg-Id": f"{other}:1"}
    swapped = replace(message, subject=message.subject.replace(known, other), headers=headers)
    return edited(lambda event: event.update(subject=other, id=f"{other}:1"))(swapped)


STREAMS: tuple[tuple[str, str, str, Callable[[list[LedgerMessage]], list[LedgerMessage]]], ...] = (
    ("an event is never published", "I-20", "is not in the stream", lambda m: m[:-1]),
    (
        "an event says something else",
        "I-21",
        "something else",
        lambda m: with_message(m, 3, edited(lambda e: e["data"].update(revision=99))),
    ),
    (
        "an event has another payload",
        "I-21",
        "something else",
        lambda m: with_message(m, 0, edited(lambda e: e["data"]["payload"].update(goal="x"))),
    ),
    ("an event is of no flow", "I-21", "never committed", lambda m: repeated(m, 0, stranger)),
    ("an event is none", "I-21", "is no event", lambda m: repeated(m, 0, lambda x: replace(x, body=b"{}"))),
    (
        "an event is repeated with other bytes",
        "I-22 I-21",
        "with other bytes",
        lambda m: repeated(m, 0, edited(lambda e: e.update(time="x"))),
    ),
    ("an event is repeated under another id", "I-22", "has the Nats-Msg-Id", lambda m: repeated(m, 0, lambda x: replace(x, headers={}))),
    ("two events change places", "I-22", "came after 0", lambda m: swapped(m, 0, 1)),
    (
        "an event goes to another agent",
        "I-29",
        "was published on",
        lambda m: with_message(m, 0, lambda x: replace(x, subject=x.subject.replace("kate", "eve"))),
    ),
)


def swapped(messages: list[LedgerMessage], one: int, other: int) -> list[LedgerMessage]:
    """Return the messages with two of them in each other's place."""
    changed = list(messages)
    changed[one] = replace(messages[other], seq=messages[one].seq)
    changed[other] = replace(messages[one], seq=messages[other].seq)
    return changed


@pytest.mark.parametrize("name, numbers, says, change", STREAMS, ids=[row[0] for row in STREAMS])
def test_what_is_planted_in_the_stream_is_found(
    healthy: Healthy,
    database: sqlite3.Connection,
    name: str,
    numbers: str,
    says: str,
    change: Callable[[list[LedgerMessage]], list[LedgerMessage]],
) -> None:
    sentences = found(evidence(healthy, database, events=Ledger(change(healthy.events))))
    assert {sentence.partition(":")[0] for sentence in sentences} == set(numbers.split()), sentences
    assert any(sentence.startswith(f"{numbers.split(maxsplit=1)[0]}:") and says in sentence for sentence in sentences), sentences


def test_a_repeat_that_is_the_same_is_no_violation(healthy: Healthy, database: sqlite3.Connection) -> None:
    assert found(evidence(healthy, database, events=Ledger(repeated(healthy.events, 4)))) == []


def test_events_that_the_stream_has_forgotten_are_no_violation(healthy: Healthy, database: sqlite3.Connection) -> None:
    assert found(evidence(healthy, database, events=Ledger(healthy.events[7:], first=healthy.events[7].seq))) == []


def test_a_dead_letter_that_is_not_in_its_stream_is_found(healthy: Healthy, database: sqlite3.Connection) -> None:
    assert [s[:4] for s in found(evidence(healthy, database, letters=Ledger(healthy.letters[1:])))] == ["I-26"]
    other = with_message(healthy.letters, 0, lambda m: replace(m, body=b"other"))
    assert [s[:4] for s in found(evidence(healthy, database, letters=Ledger(other)))] == ["I-26"]


def test_a_message_that_was_acknowledged_without_an_outcome_is_found(healthy: Healthy, database: sqlite3.Connection) -> None:
    more = InboundProgress(stream="TASKFLOW_IN", first=1, settled=healthy.last + 1)
    assert [s[:3] for s in found(evidence(healthy, database, taken=more))] == ["I-4"]
    known = replace(more, ignored=1)
    assert found(evidence(healthy, database, taken=known)) == []


def test_what_is_not_published_is_a_violation_only_once_nothing_is_in_flight(healthy: Healthy, database: sqlite3.Connection) -> None:
    database.execute("UPDATE published SET n = n - 1 WHERE outlet = 'events'")
    assert [s[:4] for s in found(Evidence(database, now=healthy.now, settled=True))] == ["I-23"]
    assert found(Evidence(database, now=healthy.now)) == []


def finish(healthy: Healthy) -> Operation:
    """Return what kate knows of the command that finished a flow."""
    return command("kate", "finish-1", "applied", verb="finish", flow_id=healthy.flows["done"], revision=4, invoked_us=10, completed_us=20)


def in_doubt(healthy: Healthy) -> Operation:
    """Return what kate knows of it where nobody answered."""
    return command("kate", "finish-1", "in_doubt", verb="finish", flow_id=healthy.flows["done"], invoked_us=10)


def of_client(healthy: Healthy, database: sqlite3.Connection, *operations: Operation, complete: bool = False) -> list[str]:
    known = with_clients(ClientRecord(operations=operations, complete=complete))
    return [str(one) for one in violations(Evidence(database, now=healthy.now), invariants=known)]


def test_what_a_client_rightly_knows_is_no_violation(healthy: Healthy, database: sqlite3.Connection) -> None:
    later = command("kate", "twice", "accepted")
    assert of_client(healthy, database, finish(healthy), later, reply(TOPIC, "c-1", "r-1")) == []


def test_an_acknowledged_operation_that_is_gone_is_lost(healthy: Healthy, database: sqlite3.Connection) -> None:
    (sentence,) = of_client(healthy, database, command("kate", "never-stored"))
    assert sentence.startswith("I-1: 'never-stored' (cmd:kate)")


def test_an_operation_that_was_applied_and_left_no_mark_is_lost(healthy: Healthy, database: sqlite3.Connection) -> None:
    database.execute("UPDATE flow_events SET cause = NULL WHERE cause = 'finish-1'")
    (sentence,) = of_client(healthy, database, finish(healthy))
    assert sentence.startswith("I-1: 'finish-1' (cmd:kate)")


def test_no_question_about_one_operation_reads_the_whole_journal(database: sqlite3.Connection) -> None:
    for sql in (client_invariants._OUTCOME, client_invariants._MARK):
        plan = [row[3] for row in database.execute(f"EXPLAIN QUERY PLAN {sql}", [""] * sql.count("?"))]
        assert [step for step in plan if step.startswith("SCAN")] == [], plan


def test_an_operation_that_was_told_otherwise_is_found(healthy: Healthy, database: sqlite3.Connection) -> None:
    told = command("kate", "too-late", "applied", verb="finish", flow_id=healthy.flows["parent"])
    assert of_client(healthy, database, told) == ["I-1: 'too-late' (cmd:kate) was told that it took effect, its outcome is rejected"]


def test_what_nobody_sent_is_unexpected(healthy: Healthy, database: sqlite3.Connection) -> None:
    known = [
        Operation(scope=s, key=k, answer="accepted") for s, k in database.execute("SELECT scope, key FROM inbox WHERE key IS NOT NULL")
    ]
    assert of_client(healthy, database, *known, complete=True) == []
    (sentence,) = of_client(healthy, database, *(one for one in known if one.key != "bob-1"), complete=True)
    assert sentence == "I-2: 'bob-1' (cmd:bob) was taken in, and nobody sent it"


def test_lost_unexpected_and_recovered_are_told_apart(healthy: Healthy, database: sqlite3.Connection) -> None:
    operations = (command("kate", "gone"), command("kate", "never-came", "in_doubt"), in_doubt(healthy))
    found_out = sets(Evidence(database, now=healthy.now), ClientRecord(operations=operations, complete=True))
    assert found_out.lost == {("cmd:kate", "gone")}
    assert found_out.recovered == {("cmd:kate", "finish-1")}
    assert ("cmd:bob", "bob-1") in found_out.unexpected
    assert ("cmd:kate", "finish-1") not in found_out.unexpected


@pytest.mark.parametrize(
    "sql",
    ["UPDATE flow_events SET cause = NULL WHERE cause = 'finish-1'", "DELETE FROM inbox WHERE key = 'finish-1'"],
    ids=["no mark", "no outcome"],
)
def test_a_doubt_that_ends_half_way_is_found(healthy: Healthy, database: sqlite3.Connection, sql: str) -> None:
    database.execute(sql)
    doubt = in_doubt(healthy)
    assert any(sentence.startswith("I-6: 'finish-1'") for sentence in of_client(healthy, database, doubt))


def test_time_goes_forward_for_whoever_asks_after_an_answer(healthy: Healthy, database: sqlite3.Connection) -> None:
    def applied(key: str, revision: int, begin: int, end: int) -> Operation:
        return command("kate", key, "applied", flow_id="f", revision=revision, invoked_us=begin, completed_us=end)

    def told(*operations: Operation) -> list[str]:
        client = ClientRecord(operations=operations)
        return list(time_goes_forward(Evidence(database, now=healthy.now), client))

    assert told(applied("a", 1, 0, 10), applied("b", 2, 11, 20), applied("c", 3, 12, 19)) == []
    assert told(applied("a", 2, 0, 10), applied("b", 1, 5, 20)) == [], "side by side they may come in any order"
    assert told(applied("a", 2, 0, 10), applied("b", 1, 11, 20)) == [
        "'b' (cmd:kate) was told of revision 1 of f, asked after 2 had been told of"
    ]


def test_two_that_are_told_of_one_revision_are_found(healthy: Healthy, database: sqlite3.Connection) -> None:
    other = command("kate", "twice", "applied", verb="advance", flow_id=healthy.flows["done"], revision=4)
    sentences = of_client(healthy, database, finish(healthy), other)
    assert any(sentence.startswith("I-11: 'finish-1' and 'twice'") for sentence in sentences)


def test_forgotten_messages_are_no_violation_once_they_are_old(healthy: Healthy, database: sqlite3.Connection) -> None:
    database.execute("DELETE FROM inbox WHERE n % 3 = 0 AND outcome <> 'held'")
    assert {s.partition(":")[0] for s in found(Evidence(database, now=healthy.now))} >= {"I-2", "I-24"}
    assert found(Evidence(database, now=healthy.now + 15 * 24 * 3600 * SECOND)) == []


@pytest.mark.parametrize("came_since", [False, True])
def test_nothing_is_wrong_after_every_message_was_forgotten(healthy: Healthy, database: sqlite3.Connection, came_since: bool) -> None:
    database.execute("DELETE FROM held")
    database.execute("UPDATE counters SET value = 0 WHERE name IN ('held', 'inbox.held')")
    row = database.execute("SELECT digest, result, source FROM inbox WHERE outcome = 'applied' LIMIT 1").fetchone()
    database.execute("DELETE FROM inbox")
    later = healthy.now + 40 * 86_400 * SECOND
    if came_since:  # the numbers begin again
        database.execute("INSERT INTO inbox (digest, outcome, result, source, at_us) VALUES (?, 'rejected', ?, ?, ?)", (*row, later))
        database.execute("UPDATE counters SET value = value + 1 WHERE name = 'inbox.rejected'")
    assert [str(one) for one in violations(Evidence(database, now=later)) if one.number == "I-16"] == []


def test_pages_that_cannot_be_read_are_told_of_and_do_not_stop_the_check(healthy: Healthy, tmp_path: Path) -> None:
    torn = tmp_path / "torn.db"
    data = bytearray(healthy.path.read_bytes())
    for at in range(4096 * 3, len(data), 4096 * 3):
        data[at : at + 100] = b"\xde" * 100
    torn.write_bytes(data)
    connection = sqlite3.connect(torn, isolation_level=None)
    try:
        sentences = found(Evidence(connection, now=healthy.now))
    finally:
        connection.close()
    assert any(sentence.startswith("I-12:") for sentence in sentences), sentences


def test_every_check_is_in_the_table_and_none_is_forgotten() -> None:
    listed = {check.look for one in INVARIANTS for check in one.checks} | set(client_invariants.CHECKS.values())
    modules = {inspect.getmodule(look) for look in listed}
    written = {
        function
        for module in modules
        for _, function in inspect.getmembers(module, inspect.isgeneratorfunction)
        if function.__module__ == module.__name__ and not function.__name__.startswith("_")  # type: ignore[union-attr]
    }
    assert written == listed
    assert [one.number for one in INVARIANTS] == [f"I-{number}" for number in range(1, 31)]


def test_every_check_names_the_invariant_it_is_listed_under() -> None:
    for one in INVARIANTS:
        for check in one.checks:
            assert one.number in re.findall(r"I-\d+", inspect.getdoc(check.look) or ""), check.look
    for number, look in client_invariants.CHECKS.items():
        assert number in re.findall(r"I-\d+", inspect.getdoc(look) or ""), look


def test_what_no_database_shows_names_tests_that_are_there() -> None:
    for one in INVARIANTS:
        assert one.checks or one.elsewhere, one.number
        assert all((ROOT / path).is_file() for path in one.elsewhere), one.elsewhere


def test_every_check_is_proven_by_a_plant() -> None:
    """I-27, I-28 and I-30 have no check; those over clients, and I-4, are planted in tests of their own above."""
    proven = {number for plant in PLANTS for number in plant.numbers[:1]} | {row[1].split()[0] for row in STREAMS}
    proven |= {"I-4"}
    assert proven == {one.number for one in INVARIANTS if one.checks}


def test_only_what_there_is_evidence_for_is_said_to_be_looked_at(healthy: Healthy, database: sqlite3.Connection) -> None:
    assert {"I-4", "I-21", "I-22"}.isdisjoint(looked_at(Evidence(database, now=healthy.now)))
    everything = {one.number for one in INVARIANTS if one.checks}
    assert set(looked_at(evidence(healthy, database))) == everything


def test_the_documentation_lists_the_invariants_as_the_table_does() -> None:
    page = (ROOT / "docs" / "invariants.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (I-\d+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", page, re.MULTILINE)
    assert rows == [(one.number, one.name, one.promise, scope_of(one)) for one in INVARIANTS]


@pytest.mark.parametrize("body", [b"", b"[" * 100_000, b"\xff", b'{"subject": "f", "sequence": "x", "data": {}}', b"[]"])
def test_a_message_that_nobody_can_read_is_kept_as_a_stranger(body: bytes) -> None:
    ledger = Ledger([LedgerMessage(1, "taskflow.dlq.malformed", {"Nats-Msg-Id": "dlq:1"}, body)])
    assert [one.place for one in ledger.strangers()] == [1]
    assert ledger.named("dlq:1") is not None
    ledger.close()
