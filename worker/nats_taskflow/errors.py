"""Name every way a request can end badly, and what becomes of the message that asked.

Three families (ARCHITECTURE 4.6): a `FlowError` is *refused*: an outcome, nothing changed. `Unavailable` is *again later*.
A `Refusal` of the surroundings (`ConfigError`, `StoreRefused`, `BusLost`) ends the process with its exit code. Anything else is a bug.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self


class FlowError(Exception):
    """A refusal: the operation changed nothing, and `code` says why (CONTRACT 3).

    `details` is a JSON object for machines; `message` is one sentence for the person who reads it.
    """

    code: ClassVar[str] = "internal"
    http: ClassVar[int] = 500

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details: dict[str, Any] = details

    def bare(self) -> Self:
        """Forget where it was raised, and why: those frames hold the request, and often the error itself, until cycles are looked for."""
        self.__cause__ = self.__context__ = None
        return self.with_traceback(None)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((self.code, self.message))

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.message, self.details))


def _rebuild(kind: type[FlowError], message: str, details: dict[str, Any]) -> FlowError:
    """Make the error again from its parts: how pickle and copy carry it."""
    return kind(message, **details)


class InvalidRequest(FlowError):
    """The body is not what the verb takes; `details.path` (RFC 6901) names the field."""

    code = "invalid_request"
    http = 400


class UnsupportedVerb(FlowError):
    """The last token of the subject is no verb of this worker."""

    code = "unsupported_verb"
    http = 400


class TopicNotBound(FlowError):
    """No reply binding covers the topic: the reply could never arrive (SEMANTICS 3)."""

    code = "topic_not_bound"
    http = 400


class TimerInPast(FlowError):
    """A timer or deadline lies before now (SEMANTICS 3)."""

    code = "timer_in_past"
    http = 400


class HorizonExceeded(FlowError):
    """A timer or deadline lies further ahead than `timer_max_horizon` (SEMANTICS 3)."""

    code = "horizon_exceeded"
    http = 400


class TooLarge(FlowError):
    """A body, or the state it would leave behind, is larger than the limit."""

    code = "too_large"
    http = 413


class TooDeep(FlowError):
    """JSON nested deeper than 32 levels."""

    code = "too_deep"
    http = 400


class Forbidden(FlowError):
    """The flow, or the topic, belongs to another agent or session."""

    code = "forbidden"
    http = 403


class NotFound(FlowError):
    """There is no such flow or step."""

    code = "not_found"
    http = 404


class NoOutcomeYet(FlowError):
    """No outcome is stored under the command id: the command has not been decided yet, or never came."""

    code = "no_outcome"
    http = 404


class IllegalTransition(FlowError):
    """The status machine has no such edge (SEMANTICS 2)."""

    code = "illegal_transition"
    http = 409


class AlreadyTerminal(FlowError):
    """The flow has ended; nothing changes it any more (SEMANTICS 2)."""

    code = "already_terminal"
    http = 409


class CancelPending(FlowError):
    """Cancellation was requested; only `cancelled` is legal now (SEMANTICS 2)."""

    code = "cancel_pending"
    http = 409


class RevisionMismatch(FlowError):
    """The flow moved on since the caller read it; `details` has `expected` and `actual`."""

    code = "revision_mismatch"
    http = 409


class WaitConflict(FlowError):
    """Another wait holds this (topic, correlation_id) (SEMANTICS R6)."""

    code = "wait_conflict"
    http = 409


class Conflict(FlowError):
    """The id was used before with another body (SEMANTICS R5 and 6)."""

    code = "conflict"
    http = 409


class IdMismatch(FlowError):
    """Header `Nats-Msg-Id` and body `command_id` differ (CONTRACT 2)."""

    code = "id_mismatch"
    http = 409


class QuotaExceeded(FlowError):
    """The agent has used up what it may ask for, or what its flows may take; `details` has the `quota`, and `retry_after` in seconds."""

    code = "quota_exceeded"
    http = 429


class Unavailable(FlowError):
    """The store or the broker cannot answer now; repeat with the same command id."""

    code = "unavailable"
    http = 503


class Internal(FlowError):
    """A defect of the worker, or a row it cannot read; repeat with the same command id."""

    code = "internal"
    http = 500


def error_of(code: str, message: str, details: dict[str, Any]) -> FlowError:
    """Make the error again from what was told of it; a code that is none of ours gives `Internal`."""
    kind = next((kind for kind in FlowError.__subclasses__() if kind.code == code), Internal)
    return kind(message, **details)


class Refusal(Exception):
    """The worker cannot run like this. One line says what, why and what to do; `exit_code` follows CONTRACT 7."""

    exit_code: ClassVar[int] = 1


class ConfigError(Refusal):
    """A setting is missing, unknown or impossible; the message names its key."""

    exit_code = 78


class StoreRefused(Refusal):
    """The database file is foreign, newer, damaged or badly placed. It was not touched."""

    exit_code = 78


class StoreLocked(Refusal):
    """Another worker holds the database."""

    exit_code = 75


class ConsumerTaken(Refusal):
    """A consumer serves another database; the message names it."""

    exit_code = 75


class StoreBroken(Refusal):
    """An I/O error left a commit in doubt: start again from disk (RELIABILITY 6, never retry fsync)."""

    exit_code = 74


class Exhausted(Refusal):
    """The system gives the process less than it needs to run at all; nothing was changed."""

    exit_code = 74


class Defect(Refusal):
    """Something in the worker has failed that nobody goes on without: the log has the traceback."""

    exit_code = 70


class TopologyRefused(Refusal):
    """A stream or consumer exists whose settings would break a promise; the message names the setting."""

    exit_code = 78

    def __init__(self, why: str, repair: str = "") -> None:
        super().__init__(f"{why}; {repair}" if repair else why)
        self.why = why  # without what to do, for who knows better what that is


class NotAllowed(Refusal):
    """The credentials may not use a subject that a command needs; the message names it."""

    exit_code = 7

    def __init__(self, subject: str) -> None:
        self.subject = subject
        say = "use others that may, or have it permitted"
        if subject.lower().startswith("_inbox"):
            say = "say where they may hear answers; with an agent's key that is --nats-inbox-prefix _INBOX.NAME"
        super().__init__(f"these credentials may not use {subject}: {say}")


class BusLost(Refusal):
    """NATS could not be reached in time, refused the credentials, or closed the connection for good."""

    exit_code = 69


class TurnedAway(BusLost):
    """The NATS server answered, and refuses what no further attempt can mend; the message says what to change."""


def root_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return what a group of failures comes down to: the refusal that decides the exit code, else the first defect."""
    flat: list[BaseException] = []
    pending: list[BaseException] = [group]
    while pending:
        failure = pending.pop(0)
        if isinstance(failure, BaseExceptionGroup):
            pending.extend(failure.exceptions)
        else:
            flat.append(failure)
    return next((failure for failure in flat if isinstance(failure, Refusal)), flat[0])
