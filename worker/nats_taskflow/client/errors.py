"""The errors of the client: the refusals of CONTRACT 3, and no answer at all.

| code | class | what to do |
|---|---|---|
| `invalid_request` `too_large` `too_deep` `unsupported_verb` | `InvalidRequest` `TooLarge` `TooDeep` `UnsupportedVerb` | correct the call |
| `topic_not_bound` `timer_in_past` `horizon_exceeded` | `TopicNotBound` `TimerInPast` `HorizonExceeded` | wait for something else |
| `forbidden` `not_found` | `Forbidden` `NotFound` | look at agent, session and id |
| `no_outcome` | `NoOutcomeYet` | ask again |
| `illegal_transition` `already_terminal` `cancel_pending` | `IllegalTransition` `AlreadyTerminal` `CancelPending` | look where it is |
| `revision_mismatch` | `RevisionMismatch` | `refresh()`, decide again |
| `wait_conflict` `conflict` `id_mismatch` | `WaitConflict` `Conflict` `IdMismatch` | use another id |
| `quota_exceeded` | `QuotaExceeded` | after `details["retry_after"]` seconds, on `cmd` under a new id; make room in `details["quota"]` |
| `unavailable` `internal` | `Unavailable` `Internal` | the same command id again, later |

The classes are the worker's own. Each has `.code`, `.message` (one sentence) and `.details` (a JSON object). Nothing has changed, except
perhaps where it is `Unavailable` or `Internal`.
"""

from __future__ import annotations

from typing import Any

from nats_taskflow import errors
from nats_taskflow.errors import (
    AlreadyTerminal,
    CancelPending,
    Conflict,
    FlowError,
    Forbidden,
    HorizonExceeded,
    IdMismatch,
    IllegalTransition,
    Internal,
    InvalidRequest,
    NoOutcomeYet,
    NotFound,
    QuotaExceeded,
    RevisionMismatch,
    TimerInPast,
    TooDeep,
    TooLarge,
    TopicNotBound,
    Unavailable,
    UnsupportedVerb,
    WaitConflict,
)

__all__ = [
    "BY_CODE",
    "AlreadyTerminal",
    "CancelPending",
    "Conflict",
    "FlowEnded",
    "FlowRefused",
    "Forbidden",
    "HorizonExceeded",
    "IdMismatch",
    "IllegalTransition",
    "Internal",
    "InvalidRequest",
    "NoOutcome",
    "NoOutcomeYet",
    "NotFound",
    "QuotaExceeded",
    "RevisionMismatch",
    "TimerInPast",
    "TooDeep",
    "TooLarge",
    "TopicNotBound",
    "Unavailable",
    "UnsupportedVerb",
    "WaitConflict",
    "error_of",
]

FlowRefused = FlowError
"""The base class of refusals. It is the worker's own, so that code over NATS and code with a `FlowManager` catch the same class."""

BY_CODE: dict[str, type[FlowError]] = {
    "invalid_request": InvalidRequest,
    "unsupported_verb": UnsupportedVerb,
    "topic_not_bound": TopicNotBound,
    "timer_in_past": TimerInPast,
    "horizon_exceeded": HorizonExceeded,
    "too_large": TooLarge,
    "too_deep": TooDeep,
    "forbidden": Forbidden,
    "not_found": NotFound,
    "no_outcome": NoOutcomeYet,
    "illegal_transition": IllegalTransition,
    "already_terminal": AlreadyTerminal,
    "cancel_pending": CancelPending,
    "revision_mismatch": RevisionMismatch,
    "wait_conflict": WaitConflict,
    "conflict": Conflict,
    "id_mismatch": IdMismatch,
    "quota_exceeded": QuotaExceeded,
    "unavailable": Unavailable,
    "internal": Internal,
}
"""CONTRACT 3, as a table."""


class NoOutcome(Unavailable):
    """No outcome came in time. Repeat with the same `command_id`: it is applied once.

    `accepted`: the stream has the command, so it *will* be decided, and `flows.outcome(command_id)` will tell. Otherwise nobody knows
    whether it arrived. `details` has both.
    """

    @property
    def command_id(self) -> str:
        """The command's id."""
        return str(self.details["command_id"])

    @property
    def accepted(self) -> bool:
        """Whether the stream is known to have the command."""
        return bool(self.details["accepted"])


class FlowEnded(Exception):
    """The flow will not run again: it has ended with `status`, and perhaps a `reason`."""

    def __init__(self, flow_id: str, status: str, reason: str | None) -> None:
        super().__init__(f"flow {flow_id} is {status}" + (f": {reason}" if reason else ""))
        self.flow_id = flow_id
        self.status = status
        self.reason = reason


def error_of(code: str, message: str, details: dict[str, Any]) -> FlowError:
    """Return the exception for a refusal on the wire.

    An unknown code becomes `Internal` and stays in `details`.
    """
    if code not in BY_CODE:
        return Internal(message, **{**details, "code": code})
    return errors.error_of(code, message, details)
