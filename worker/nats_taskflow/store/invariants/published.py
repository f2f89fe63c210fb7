"""Check the streams against the database.

What is published is what was committed, in order; what came in was taken in.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from nats_taskflow.flow.ids import agent_of
from nats_taskflow.flow.lifecycle import TERMINAL
from nats_taskflow.store.invariants.evidence import Evidence, FlowHistory
from nats_taskflow.store.invariants.ledger import Ledger, content_digest, digest
from nats_taskflow.text import counted
from nats_taskflow.wire.events import event_message
from nats_taskflow.wire.subjects import is_token

_ENDS = {status.value for status in TERMINAL}


def is_published(history: FlowHistory, evidence: Evidence, events: Ledger) -> Iterator[str]:
    """I-20: every entry up to the mark lies in the stream.

    It does as far back as the stream keeps events.
    """
    mark = evidence.marks["events"]
    published = {event.number for event in events.of(history.id)}
    oldest = min(published, default=None)
    for entry in history.entries:
        kept = events.first == 1 or (oldest is not None and entry.seq > oldest)
        if entry.event is not None and entry.n <= mark and kept and entry.seq not in published:
            yield f"the entry {history.id}:{entry.seq} is said to be published, and is not in the stream"


def says_what_was_committed(history: FlowHistory, evidence: Evidence, events: Ledger) -> Iterator[str]:
    """I-21: an event says what its journal entry says.

    So folding the events gives the flow.
    """
    entries = {entry.seq: entry for entry in history.entries}
    for event in events.of(history.id):
        entry = entries.get(event.number)
        if entry is None:
            yield f"the event {history.id}:{event.number} at {event.place} was published, but never committed"
        elif entry.event is not None and history.flow is not None:
            message = event_message(entry.event, history.flow.controller_id, history.owner, evidence.subjects)
            if content_digest(msgspec.json.decode(message.body)) != event.content:
                yield f"the event {history.id}:{event.number} at {event.place} says something else than the journal"


def comes_from_a_flow(evidence: Evidence, events: Ledger) -> Iterator[str]:
    """I-21: nothing is published but events of flows that are there.

    A flow may also have ended long enough ago to be deleted.
    """
    for stranger in events.strangers():
        yield f"what lies at {stranger.place} ({stranger.subject}) is no event"
    for flow_id in events.flows():
        if evidence.value("SELECT 1 FROM flows WHERE id = ?1", flow_id) is None:
            published = events.of(flow_id)
            if not any(event.kind in _ENDS for event in published):  # observed runs may follow the end
                yield f"the event {flow_id}:{published[-1].number} at {published[-1].place} is of a flow that was never committed"


def is_in_order(evidence: Evidence, events: Ledger) -> Iterator[str]:  # noqa: ARG001  every check of a stream is asked alike
    """I-22: the first occurrences of a flow's events are 1, 2, 3, …

    A repeat is below the high-water mark, byte-identical, and under the same id.
    """
    for flow_id in events.flows():
        high = 0
        bodies: dict[int, bytes] = {}
        for event in events.of(flow_id):
            if event.msg_id != f"{flow_id}:{event.number}":
                yield f"the event {flow_id}:{event.number} at {event.place} has the Nats-Msg-Id {event.msg_id}"
            if event.number in bodies and bodies[event.number] != event.digest:
                yield f"the event {flow_id}:{event.number} was repeated at {event.place} with other bytes"
            if event.number not in bodies and event.number != high + 1 and (high or events.first == 1):
                yield f"the event {flow_id}:{event.number} at {event.place} came after {high}"
            bodies[event.number] = event.digest
            high = max(high, event.number)


def is_told_to_its_own(history: FlowHistory, evidence: Evidence, events: Ledger) -> Iterator[str]:
    """I-29: an event goes out under the agent that owns its flow."""
    for event in events.of(history.id):
        if event.subject != evidence.subjects.event(agent_of(history.owner), history.id, event.kind) or event.owner != history.owner:
            yield f"the event {history.id}:{event.number} of {history.owner} was published on {event.subject} for {event.owner}"


def dead_letters_are_out(evidence: Evidence, letters: Ledger) -> Iterator[str]:
    """I-26: each dead letter up to the mark lies in its stream.

    It does as far back as the stream keeps them.
    """
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
    """I-4, I-24, I-26: every settled inbound message has its outcome, once.

    It keeps the outcome while it lies in the stream.
    """
    taken = evidence.taken
    if taken is None or taken.settled < taken.first:
        return
    query = "SELECT count(DISTINCT source_seq) FROM inbox WHERE source = ?1 AND source_seq BETWEEN ?2 AND ?3"
    decided = evidence.value(query, taken.stream, taken.first, taken.settled)
    kept = taken.settled - taken.first + 1 - taken.ignored
    if decided != kept:
        where = f"{taken.first} to {taken.settled}, {taken.ignored} ignored"
        yield f"{taken.stream} keeps {counted(kept, 'settled message')} ({where}), {decided} of them have an outcome"


_WHOLE = 512 * 1024
"""Bytes: any broker takes a body below this whole; a larger one may have been cut to what the broker takes."""
