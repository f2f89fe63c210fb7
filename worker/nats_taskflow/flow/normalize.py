"""Make a wait condition absolute: times in UTC, durations turned into times, correlation ids minted where none are given (R3)."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from hashlib import sha256
from itertools import count
from uuid import UUID

from msgspec.structs import replace

from nats_taskflow.errors import InvalidRequest
from nats_taskflow.flow.conditions import Composite, ExternalEvent, FlowEnds, Timer, WaitCondition
from nats_taskflow.flow.stimuli import Policy
from nats_taskflow.flow.validate import relocate
from nats_taskflow.units import Micros, parse_duration, to_datetime

_DIGITS = 32
"""Of a minted id, in hexadecimal: 128 bit, written as a UUID, for agents that parse it as one and write it back (R3)."""


def settle(condition: WaitCondition, now: Micros, policy: Policy, nonce: str) -> WaitCondition:
    """Make a condition absolute: durations become times, missing correlation ids are minted, times are UTC.

    Raises `InvalidRequest` for a text that is no duration, and where both a time and a duration are given.
    """
    settled = _settle(condition, now, _ids(nonce))
    wants_default = policy.default_timeout_us is not None and not isinstance(settled, Timer) and settled.deadline is None
    if wants_default and not isinstance(settled, Timer):
        settled = replace(settled, deadline=to_datetime(now + (policy.default_timeout_us or 0)))
    return settled


def _settle(part: WaitCondition, now: Micros, ids: Iterator[str]) -> WaitCondition:
    """Settle one part and what is below it."""
    if isinstance(part, Timer):
        return replace(part, at=_moment(part, "at", "after", now), after=None)
    end = _moment(part, "deadline", "timeout", now)
    if end is not None:
        part = replace(part, deadline=end, timeout=None)
    if isinstance(part, ExternalEvent) and part.correlation_id is None:
        return replace(part, correlation_id=next(ids))
    if isinstance(part, FlowEnds):
        return replace(part, flow_id=part.flow_id.lower())
    if isinstance(part, Composite):
        return replace(part, conditions=tuple(_settle_below(part, index, now, ids) for index in range(len(part.conditions))))
    return part


def _settle_below(part: Composite, index: int, now: Micros, ids: Iterator[str]) -> WaitCondition:
    """Settle one condition of a composite. Raises `InvalidRequest` that names its field from the whole condition down."""
    try:
        return _settle(part.conditions[index], now, ids)
    except InvalidRequest as refused:
        relocate(refused, f"/conditions/{index}")
        raise


def _ids(nonce: str) -> Iterator[str]:
    """Give unguessable ids that all come from one nonce, and tell nothing of it: who knows one of them cannot make the others."""
    for number in count(1):
        yield str(UUID(hex=sha256(f"{nonce}:{number}".encode()).hexdigest()[:_DIGITS]))


def _moment(part: WaitCondition, instant: str, length: str, now: Micros) -> datetime | None:
    """Return a part's instant in UTC, given as such or as a length from now on; None where neither is. Raises `InvalidRequest`."""
    at, span = getattr(part, instant), getattr(part, length)
    if span is None:
        return None if at is None else _utc(at, instant)
    if at is not None:
        raise InvalidRequest(f"`{instant}` and `{length}` say the same: leave one out", path=f"/wait_condition/{length}")
    return to_datetime(now + _duration(span, length))


def _utc(at: datetime, name: str) -> datetime:
    """Return the time in UTC. Raises `InvalidRequest` where UTC has no such year (9999-12-31 west of Greenwich)."""
    try:
        return at.astimezone(UTC)
    except OverflowError as bad:
        message = f"{name} is no time between the years 1 and 9999 in UTC"
        raise InvalidRequest(message, path=f"/wait_condition/{name}") from bad


def _duration(text: str, name: str) -> Micros:
    """Read a duration. Raises `InvalidRequest` naming the field."""
    try:
        return parse_duration(text)
    except ValueError as bad:
        raise InvalidRequest(str(bad), path=f"/wait_condition/{name}") from bad
