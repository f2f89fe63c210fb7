"""Build the conditions that a flow can wait for (SEMANTICS 3).

Each function returns a condition for `flow.wait`, or for `any_of`, `all_of` and `at_least`. Every condition but a timer can have an end:
`timeout`, a duration from the parking (`"15m"`, or a `timedelta`), or `deadline`, an aware datetime. `on_timeout` says what happens then:
`resume` (run on, with `{"timed_out": True}`), `fail` or `cancel`.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from nats_taskflow.errors import InvalidRequest
from nats_taskflow.units import BadDuration, format_duration, parse_duration

Condition = dict[str, Any]
OnTimeout = Literal["resume", "fail", "cancel"]
Length = str | timedelta
"""A duration: `"1h 30m"`, or a `timedelta`."""


def reply(
    topic: str,
    correlation_id: str | None = None,
    *,
    accept: dict[str, Any] | None = None,
    mode: Literal["one", "all"] = "one",
    timeout: Length | None = None,
    deadline: datetime | None = None,
    on_timeout: OnTimeout = "resume",
) -> Condition:
    """Wait for a reply to exactly (topic, correlation id).

    None: the worker makes an id that nobody can guess. `accept`: a JSON Schema of the payload.
    """
    condition: Condition = {"kind": "external_event", "topic": topic, "correlation_id": correlation_id, "accept": accept}
    if mode != "one":
        condition["mode"] = mode
    return _bounded(condition, timeout, deadline, on_timeout)


def timer(at: datetime | Length) -> Condition:
    """Wait until `at`: an aware datetime, or a duration from the parking.

    Raises `InvalidRequest` for anything else.
    """
    if isinstance(at, datetime):
        return {"kind": "timer", "at": _instant(at, "/wait_condition/at")}
    return {"kind": "timer", "after": _spell(at, "/wait_condition/after")}


def manual(
    prompt: str | None = None,
    *,
    name: str | None = None,
    timeout: Length | None = None,
    deadline: datetime | None = None,
    on_timeout: OnTimeout = "resume",
) -> Condition:
    """Wait for somebody's `resume`.

    `prompt` says who is to do what. `name` tells several of them in one wait apart.
    """
    return _bounded({"kind": "manual", "prompt": prompt, "name": name}, timeout, deadline, on_timeout)


def ended(flow_id: str, *, timeout: Length | None = None, deadline: datetime | None = None, on_timeout: OnTimeout = "resume") -> Condition:
    """Wait for the end of another flow of the same agent and session."""
    return _bounded({"kind": "flow", "flow_id": flow_id}, timeout, deadline, on_timeout)


def any_of(
    *conditions: Condition, timeout: Length | None = None, deadline: datetime | None = None, on_timeout: OnTimeout = "resume"
) -> Condition:
    """Wait until one of the conditions holds."""
    return _bounded({"kind": "any_of", "conditions": list(conditions)}, timeout, deadline, on_timeout)


def all_of(
    *conditions: Condition, timeout: Length | None = None, deadline: datetime | None = None, on_timeout: OnTimeout = "resume"
) -> Condition:
    """Wait until all of the conditions hold."""
    return _bounded({"kind": "all_of", "conditions": list(conditions)}, timeout, deadline, on_timeout)


def at_least(
    count: int, *conditions: Condition, timeout: Length | None = None, deadline: datetime | None = None, on_timeout: OnTimeout = "resume"
) -> Condition:
    """Wait until `count` of the conditions hold."""
    return _bounded({"kind": "at_least", "count": count, "conditions": list(conditions)}, timeout, deadline, on_timeout)


def length(duration: Length) -> timedelta:
    """Parse a duration.

    Raises `InvalidRequest` for anything else. That includes a bare number, which has no unit.
    """
    return timedelta(microseconds=parse_duration(_spell(duration, "/timeout")))


def _spell(duration: Length, path: str) -> str:
    """Write a duration as the worker reads it.

    Raises `InvalidRequest` for anything else.
    """
    try:
        if isinstance(duration, timedelta):
            return format_duration(duration // timedelta(microseconds=1))
        if isinstance(duration, str):
            return format_duration(parse_duration(duration))
    except BadDuration as bad:
        raise InvalidRequest(str(bad), path=path) from None
    raise InvalidRequest(f'a duration is text like "15m", or a timedelta, not {duration!r}', path=path)


def bounds(timeout: Length | None, deadline: datetime | None, on_timeout: OnTimeout) -> Condition:
    """Return the fields that end a wait.

    Raises `InvalidRequest` for a timeout that is no duration, and for a deadline without an offset.
    """
    fields: Condition = {}
    if timeout is not None:
        fields["timeout"] = _spell(timeout, "/timeout")
    if deadline is not None:
        fields["deadline"] = _instant(deadline, "/deadline")
    if on_timeout != "resume":
        fields["on_timeout"] = on_timeout
    return fields


def _bounded(condition: Condition, *end: Any) -> Condition:
    return {name: value for name, value in condition.items() if value is not None} | bounds(*end)


def _instant(at: datetime, path: str) -> str:
    if at.tzinfo is None:
        raise InvalidRequest("a time without an offset is ambiguous: give an aware datetime", path=path)
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")
