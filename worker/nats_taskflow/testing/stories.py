"""Write the story of a flow, for an assert that fails.

It says what happened when, where the flow is now, and what it waits for.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import msgspec

from nats_taskflow.testing.clock import shown
from nats_taskflow.units import Micros, to_micros

Json = dict[str, Any]
_TELLING = ("wait", "patch", "reason", "final_state")
_WIDTH = 120


def story(flow: Json, events: list[Json], sentences: list[Json]) -> str:
    """Return the story of a flow as the worker shows it (`status`, `history`, `why`)."""
    return "\n".join(_lines(flow, events, sentences))


def said(condition: Json | None) -> str:
    """Describe what a flow waits for."""
    if condition is None:
        return "nothing"
    match condition:
        case {"kind": "external_event"}:
            text = f"a reply on {condition['topic']} for {condition.get('correlation_id')}"
        case {"kind": "timer"}:
            text = f"the time {condition['at']}"
        case {"kind": "flow"}:
            text = f"flow {condition['flow_id']}"
        case {"kind": str(kind), "conditions": list(parts)}:
            count = f" {condition['count']}" if "count" in condition else ""
            text = f"{kind}{count} of ({'; '.join(said(part) for part in parts)})"
        case _:
            text = str(condition.get("kind"))
    return f"{text}, until {condition['deadline']}" if condition.get("deadline") else text


def leaves(condition: Json | None) -> Iterator[Json]:
    """Yield the waits for a reply in a condition, however deep."""
    if condition is None:
        return
    if condition.get("kind") == "external_event":
        yield condition
    for part in condition.get("conditions", ()):
        yield from leaves(part)


def _lines(flow: Json, events: list[Json], sentences: list[Json]) -> Iterator[str]:
    """Yield the story, line by line."""
    yield f"the story of {flow['id']} ({flow['controller_id']}: {flow['goal']!r})"
    began = _at(events[0]) if events else 0
    rows = [(str(e["seq"]), f"+{shown(_at(e) - began)}", e["kind"], f"by {e['actor']}", _about(e)) for e in events]
    widths = [max((len(row[at]) for row in rows), default=0) for at in range(4)]
    for row in rows:
        fixed = "  ".join(part.ljust(width) for part, width in zip(row[:4], widths, strict=True))
        yield f"  {fixed}  {row[4]}".rstrip()
    yield f"  now {flow['status']}, step {flow['current_step']!r}, revision {flow['revision']}, state {_short(flow['state'])}"
    yield from (f"  {sentence['text']}" for sentence in sentences)


def _about(event: Json) -> str:
    """Describe the payload of an event, on the rest of its line."""
    payload = event["payload"]
    details = {name: payload[name] for name in _TELLING if payload.get(name) is not None}
    if list(details) == ["wait"] and isinstance(details["wait"], dict):
        return f"for {said(details['wait'])}"
    return _short(details) if details else ""


def _short(value: Any) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 1]}…"


def _at(event: Json) -> Micros:
    return to_micros(datetime.fromisoformat(event["at"]))
