"""Check the streams against the database: what is published is what was committed, in order; what came in was taken in."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from nats_taskflow.flow.ids import agent_of
from nats_taskflow.flow.lifecycle import TERMINAL
from nats_taskflow.store.invariants.evidence import Evidence, FlowHistory
from nats_taskflow.store.invariants.ledger import Ledger, digest, said
from nats_taskflow.wire.events import event_message
from nats_taskflow.wire.subjects import is_token

_ENDS = {status.value for status in TERMINAL}


def is_published(life: FlowHistory, evidence: Evidence, events: Ledger) -> Iterator[str]:
    """I-20: every entry up to the mark lies in the stream, as far back as the stream keeps events."""
    mark = evidence.marks["events"]
    heard = {one.number for one in events.of(life.id)}
    oldest = min(heard, default=None)
    for entry in life.entries:
        kept = events.first == 1 or (oldest is not None and entry.seq > oldest)
        if entry.event is not None and entry.n <= mark and kept and entry.seq not in heard:
            yield f"the entry {life.id}:{entry.seq} is said to be published, and is not in the stream"


def says_what_was_committed(life: FlowHistory, evidence: Evidence, events: Ledger) -> Iterator[str]:
    """I-21: an event says what its journal entry says, so that folding the events gives the flow."""
    entries = {entry.seq: entry for entry in life.entries}
    for one in events.of(life.id):
        entry = entries.get(one.number)
        if entry is None:
            yield f"the event {life.id}:{one.number} at {one.place} was published, but never committed"
        elif entry.event is not None and life.flow is not None:
            message = event_message(entry.event, life.flow.controller_id, life.owner, evidence.subjects)
            if said(msgspec.json.decode(message.body)) != one.said:
                yield f"the event {life.id}:{one.number} at {one.place} says something else than the journal"


def comes_from_a_flow(evidence: Evidence, events: Ledger) -> Iterator[str]:
    """I-21: nothing is published but events of flows that are there, or that had ended long enough ago to be deleted."""
    for stranger in events.strangers():
        yield f"what lies at {stranger.place} ({stranger.subject}) is no event"
    for flow_id in events.flows():
        if evidence.value("SELECT 1 FROM flows WHERE id = ?1", flow_id) is None:
            of = events.of(flow_id)
            if not any(one.kind in _ENDS for one in of):  # observed runs may follow the end
                yield f"the event {flow_id}:{of[-1].number} at {of[-1].place} is of a flow that was never committed"


def is_in_order(evidence: Evidence, events: Ledger) -> Iterator[str]:  # noqa: ARG001  every check of a stream is asked alike
    """I-22: per flow, first occurrences are 1, 2, 3, …; a repeat is below the high-water mark, byte-identical, under the same id."""
    for flow_id in events.flows():
        high = 0
        bodies: dict[int, bytes] = {}
        for one in events.of(flow_id):
            if one.msg_id != f"{flow_id}:{one.number}":
                yield f"the event {flow_id}:{one.number} at {one.place} has the Nats-Msg-Id {one.msg_id}"
            if one.number in bodies and bodies[one.number] != one.digest:
                yield f"the event {flow_id}:{one.number} was repeated at {one.place} with other bytes"
            if one.number not in bodies and one.number != high + 1 and (high or events.first == 1):
                yield f"the event {flow_id}:{one.number} at {one.place} came after {high}"
            bodies[one.number] = one.digest
            high = max(high, one.number)


def is_told_to_its_own(life: FlowHistory, evidence: Evidence, events: Ledger) -> Iterator[str]:
    """I-29: an event goes out under the agent that owns its flow."""
    for one in events.of(life.id):
        if one.subject != evidence.subjects.event(agent_of(life.owner), life.id, one.kind) or one.owner != life.owner:
            yield f"the event {life.id}:{one.number} of {life.owner} was published on {one.subject} for {one.owner}"


def dead_letters_are_out(evidence: Evidence, letters: Ledger) -> Iterator[str]:
    """I-26: each dead letter up to the mark lies in its stream, as far back as the stream keeps them."""
    if letters.first > 1:
        return  # some are too old by now, and a letter does not say which
    query = "SELECT n, reason, body FROM dead_letters WHERE n <= ?1 ORDER BY n"
    for n, reason, body in evidence.rows(query, evidence.marks["dead_letters"]):
        sent = letters.named(f"dlq:{n}")
        if sent is None or sent.subject != evidence.subjects.dead_letter(reason if is_token(reason) else "other"):
            yield f"dead letter {n} ({reason}) is not in its stream as it should be: {sent.subject if sent else 'it is not there'}"
        elif sent.digest != digest(bytes(body)) and len(body) < _WHOLE:
            yield f"dead letter {n} ({reason}) was published with another body"


def everything_is_taken_in(evidence: Evidence) -> Iterator[str]:
    """I-4, I-24, I-26: every message of the inbound stream that was settled has its outcome, once, and keeps it while it lies there."""
    taken = evidence.taken
    if taken is None or taken.settled < taken.first:
        return
    query = "SELECT count(DISTINCT source_seq) FROM inbox WHERE source = ?1 AND source_seq BETWEEN ?2 AND ?3"
    found = evidence.value(query, taken.stream, taken.first, taken.settled)
    wanted = taken.settled - taken.first + 1 - taken.ignored
    if found != wanted:
        where = f"{taken.first} to {taken.settled}, {taken.ignored} ignored"
        yield f"{taken.stream} keeps {wanted} settled messages ({where}), {found} of them have an outcome"


_WHOLE = 512 * 1024
"""Bytes: bodies below this are published whole by any broker; a larger one may have been cut to what it takes."""
