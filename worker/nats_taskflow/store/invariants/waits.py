"""Check the waits: each ends once, by what it waited for.

Whoever waits can be found, and nobody waits for what is there already.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from nats_taskflow.flow.conditions import FLOW_ENDS, ExternalEvent, FlowEnds, deadline_of, from_value, open_nodes
from nats_taskflow.flow.lifecycle import EventKind
from nats_taskflow.flow.model import Pair
from nats_taskflow.store.invariants.evidence import Evidence, FlowHistory

_ENDS = {EventKind.RESUMED, EventKind.FINISHED, EventKind.FAILED, EventKind.CANCELLED}


def ends_once(history: FlowHistory) -> Iterator[str]:
    """I-13: each generation of a wait ends at most once, and its leaves close with it."""
    generation: int | None = None
    answered: set[str] = set()
    for event in history.events:
        if event.kind is EventKind.WAITING:
            generation, answered = event.revision, set()
        elif event.kind is EventKind.RESUMED and generation is None:
            yield f"{history.id} resumed at revision {event.revision} without a wait"
        elif event.kind is EventKind.WAIT_PROGRESSED:
            leaf = str(event.payload.get("leaf"))
            if generation is None or leaf in answered:
                yield f"leaf {leaf} of wait {generation} of {history.id} was satisfied again at revision {event.revision}"
            answered.add(leaf)
        if event.kind in _ENDS:
            generation = None
    for waiter, is_open in history.waiters:
        if is_open and history.flow is not None and waiter.wait_id != history.flow.wait_id:
            yield f"wait {waiter.wait_id} of {history.id} is over and still open"


def is_ended_by_its_own_pair(history: FlowHistory) -> Iterator[str]:
    """I-15: a reply for one wait never ends another."""
    pairs: dict[int, set[Pair]] = {}
    for waiter, _ in history.waiters:
        pairs.setdefault(waiter.wait_id, set()).add(("flow" if waiter.topic == FLOW_ENDS else waiter.topic, waiter.correlation_id))
    generation = 0
    for event in history.events:
        if event.kind is EventKind.WAITING:
            generation = event.revision
        if event.kind is EventKind.RESUMED and event.payload.get("cause") == "event":
            meta = _object(_object(event.payload.get("patch")).get("resume_meta"))
            pair = (meta.get("topic"), meta.get("correlation_id"))
            if pair not in pairs.get(generation, set()):
                yield f"wait {generation} of {history.id} was resumed by {pair}, which it did not wait for"


def can_be_found(history: FlowHistory) -> Iterator[str]:
    """I-14: every open leaf of a parked flow is registered.

    It is registered exactly as the flow waits for it, or its reply would not find it.
    """
    condition = from_value(history.flow.wait_json) if history.flow is not None and history.flow.wait_json is not None else None
    if history.flow is None or condition is None:
        return
    waited: set[tuple[int, str, str, str]] = set()
    for node in open_nodes(condition, history.flow.progress or {}):
        match node.condition:
            case ExternalEvent(topic=topic, correlation_id=correlation_id, mode=mode):
                waited.add((node.leaf or 0, topic, correlation_id or "", mode))
            case FlowEnds(flow_id=awaited):
                waited.add((node.leaf or 0, FLOW_ENDS, awaited, "all"))
            case _:
                pass
    registered = {
        (w.leaf, w.topic, w.correlation_id, w.mode) for w, is_open in history.waiters if is_open and w.wait_id == history.flow.wait_id
    }
    for _, topic, correlation_id, by in sorted(waited - registered):
        yield f"{history.id} waits for ({_shown(topic)}, {correlation_id}) by mode {by}, and is not registered for it: no reply can find it"
    for _, topic, correlation_id, by in sorted(registered - waited):
        yield f"{history.id} is registered for ({_shown(topic)}, {correlation_id}) by mode {by}, and does not wait for it"


def no_reply_is_left_lying(evidence: Evidence) -> Iterator[str]:
    """I-14: no reply is held that an open wait for the same pair would take.

    Nor does anybody wait for the end of a flow that has ended.
    """
    held = """SELECT h.topic, h.correlation_id, h.event_id, h.arrived_us, f.id, w.leaf, CAST(f.wait_json AS BLOB)
      FROM held AS h CROSS JOIN waiters AS w CROSS JOIN flows AS f
      WHERE w.topic = h.topic AND w.correlation_id = h.correlation_id AND w.open = 1 AND f.n = w.flow AND f.wait_id = w.wait_id
        AND (h.flow_id IS NULL OR h.flow_id = f.id) AND h.expires_us > f.parked_us AND f.set_aside IS NULL"""
    for topic, correlation_id, event_id, arrived_us, flow_id, leaf, wait in evidence.rows(held):
        condition = from_value(_decode(wait))
        deadline = deadline_of(condition, leaf) if condition is not None else None
        if condition is not None and (deadline is None or arrived_us < deadline):
            yield f"the reply {event_id} for ({topic}, {correlation_id}) is held, though {flow_id} waits for it"
    ended = """SELECT f.id, e.id, e.status FROM waiters AS w CROSS JOIN flows AS f CROSS JOIN flows AS e
      WHERE w.open = 1 AND w.topic = ?1 AND f.n = w.flow AND e.id = w.correlation_id AND e.status IN ('finished', 'failed', 'cancelled')
        AND f.cancel_requested = 0 AND f.set_aside IS NULL AND e.set_aside IS NULL"""
    for flow_id, awaited, status in evidence.rows(ended, FLOW_ENDS):
        yield f"{flow_id} waits for the end of {awaited}, which is {status} already"


def pairs_are_unique(evidence: Evidence) -> Iterator[str]:
    """I-18: nobody shares a (topic, correlation id) with a wait of mode `one`."""
    query = "SELECT topic, correlation_id, count(*) FROM waiters WHERE open = 1 GROUP BY 1, 2 HAVING count(*) > 1 AND max(mode = 'one')"
    for topic, correlation_id, count in evidence.rows(query):
        yield f"{count} open waits for ({_shown(topic)}, {correlation_id}), one of them of mode `one`"


def _decode(stored: bytes) -> Any:
    """Return stored JSON, None where it cannot be read: I-8 reports that."""
    try:
        return msgspec.json.decode(stored)
    except (ValueError, RecursionError):
        return None


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _shown(topic: str) -> str:
    # The topic for the ends of flows has a control character.
    return "the end of flow" if topic == FLOW_ENDS else topic
