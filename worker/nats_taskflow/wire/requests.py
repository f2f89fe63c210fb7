"""The body of every verb, as a type (CONTRACT 2).

Unknown fields are refused by name.

An optional field without a default takes `null` as absent; a field with a default does not. Free text may hold anything but NUL. A text
that is matched, or shown as a name, may hold no control characters. Ids keep their bytes: nothing is trimmed.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta

from nats_taskflow.flow.lifecycle import FlowStatus, FlowStepStatus

NO_NUL = r"\A[^\x00]*\Z"
NO_CONTROLS = r"\A[^\x00-\x1f\x7f-\x9f]*\Z"
UUID = re.compile(r"\A[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}\Z")
MAX_LIMIT = 1000
DEFAULT_LIMIT = 100

CommandId = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_-]{1,64}\Z")]
FlowId = Annotated[str, Meta(pattern=UUID.pattern)]
SessionId = Annotated[str, Meta(pattern=r"\A[^\x00-\x1f\x7f-\x9f]{1,128}\Z")]
Revision = int
"""Any whole number: one at which no flow can be is a `revision_mismatch`, with the actual one (RELIABILITY 4, row 43)."""
Name = Annotated[str, Meta(min_length=1, max_length=1024, pattern=NO_CONTROLS)]
Key = Annotated[str, Meta(min_length=1, max_length=256, pattern=NO_CONTROLS)]
Label = Annotated[str, Meta(min_length=1, max_length=1024, pattern=NO_NUL)]
Text = Annotated[str, Meta(max_length=4096, pattern=NO_NUL)]
Subject = Annotated[str, Meta(min_length=1, max_length=256, pattern=r"\A[^\s\x00-\x20\x7f-\x9f.*>]+(?:\.[^\s\x00-\x20\x7f-\x9f.*>]+)*\Z")]
Limit = Annotated[int, Meta(ge=0, le=MAX_LIMIT)]
Cursor = Annotated[str, Meta(max_length=1024)]
Object = dict[str, Any]
WaitKind = Literal["timer", "external_event", "manual", "flow", "any_of", "all_of", "at_least"]


class Request(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What every request may carry.

    The owner is `agent:<agent of the subject>:session:<session_id>`.
    """

    command_id: CommandId | None = None
    session_id: SessionId = "main"
    expected_revision: Revision | None = None
    requester_origin: Label | None = None


class OfFlow(Request, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A request about one flow."""

    flow_id: FlowId


class Start(Request, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Create a flow and run it; with `hold` it stays `created`.

    `mirrored` marks a flow whose runs happen elsewhere.
    """

    controller_id: Name
    goal: Text
    current_step: Label = "init"
    state: Object = {}
    flow_id: FlowId | None = None
    idempotency_key: Key | None = None
    mirrored: bool = False
    hold: bool = False
    parent_flow_id: FlowId | None = None


class Run(OfFlow, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Move a created flow to running."""


class Advance(OfFlow, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Merge `patch` into the state and name the next step."""

    patch: Object | None = None
    current_step: Label | None = None


class Wait(OfFlow, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Park the flow on a wait condition (SEMANTICS 3).

    The condition is checked where the flow is parked.
    """

    wait_condition: Object


class DelegateCommand(OfFlow, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Send a request to a delegate and wait for its reply, atomically (SEMANTICS 5)."""

    to: Subject
    payload: Any = None
    headers: dict[str, str] = {}
    reply_topic: Subject | None = None
    correlation_id: Key | None = None
    deadline: Key | None = None
    timeout: Key | None = None
    on_timeout: Literal["resume", "fail", "cancel"] = "resume"
    accept: Object | None = None
    cancel_to: Subject | None = None


class Resume(OfFlow, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Resume a waiting flow whatever it waits for.

    With `leaf` (number or name): answer only that manual leaf of a composite wait.
    """

    patch: Object | None = None
    reason: Text | None = None
    leaf: int | Key | None = None


class Finish(OfFlow, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """End the flow well."""

    final_state: Object | None = None


class Fail(OfFlow, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """End the flow badly."""

    reason: Text


class Cancel(OfFlow, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Cancel the flow `now`, or `request` that it winds down.

    `now` cancels its children with it, unless `cascade` is false.
    """

    reason: Text | None = None
    mode: Literal["now", "request"] = "now"
    cascade: bool = True


class Observe(OfFlow, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Record what is known of one run; the same `run_id` updates in place."""

    run_id: Key
    task: Text
    status: FlowStepStatus
    child_session_key: Name | None = None
    result: Any = None


class Status(OfFlow, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Show one flow."""


class Paged(Request, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A query that answers page by page.

    `cursor` is the `next_cursor` of the page before.
    """

    limit: Limit = DEFAULT_LIMIT
    cursor: Cursor | None = None


class ListMine(Paged, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """List the flows of this agent and session, newest first.

    With a filter a page may be short and still have a next one. `controller` may have `*` for any text (`kate/*`), `goal` is a part of the
    goal's text in any case. `topic`, `correlation_id`: what a flow waits for. `since`, `until`: when it last changed, an RFC 3339 time or a
    duration ago (`1h`).
    """

    status: FlowStatus | None = None
    controller: Name | None = None
    step: Label | None = None
    topic: Key | None = None
    correlation_id: Key | None = None
    since: Key | None = None
    until: Key | None = None
    goal: Key | None = None


class Steps(Paged, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """List the observed runs of one flow."""

    flow_id: FlowId


class Step(OfFlow, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Show one observed run of a flow."""

    run_id: Key


class History(Paged, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Show the journal of one flow, oldest first, or with `newest` the newest first."""

    flow_id: FlowId
    newest: bool = False


class Waits(Paged, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Show what the flows of this agent and session (or one of them) wait for."""

    flow_id: FlowId | None = None


class Why(OfFlow, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Explain one flow in sentences.

    They tell what it waits for, what came near, and what happens next.
    """


class OutcomeQuery(Request, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Show the stored outcome of a command."""

    command_id: CommandId


COMMANDS: dict[str, type[Request]] = {
    "start": Start,
    "run": Run,
    "advance": Advance,
    "wait": Wait,
    "delegate": DelegateCommand,
    "resume": Resume,
    "finish": Finish,
    "fail": Fail,
    "cancel": Cancel,
    "observe": Observe,
}
"""The commands, on `cmd` and on `api`."""

QUERIES: dict[str, type[Request]] = {
    "status": Status,
    "list_mine": ListMine,
    "steps": Steps,
    "step": Step,
    "history": History,
    "waits": Waits,
    "why": Why,
    "outcome": OutcomeQuery,
}
"""The queries, on `api` only."""

EXPECTED: dict[str, str] = {
    "command_id": "text of 1 to 64 characters of A-Z a-z 0-9 _ -",
    "flow_id": "a UUID like 01931c5e-7b2a-7c3d-9e4f-0a1b2c3d4e5f",
    "session_id": "text of 1 to 128 characters without control characters",
    "expected_revision": "a whole number",
    "controller_id": "text of 1 to 1024 characters without control characters",
    "child_session_key": "text of 1 to 1024 characters without control characters",
    "requester_origin": "text of 1 to 1024 characters without NUL",
    "current_step": "text of 1 to 1024 characters without NUL",
    "idempotency_key": "text of 1 to 256 characters without control characters",
    "run_id": "text of 1 to 256 characters without control characters",
    "correlation_id": "text of 1 to 256 characters without control characters",
    "goal": "text of at most 4096 characters without NUL",
    "reason": "text of at most 4096 characters without NUL",
    "task": "text of at most 4096 characters without NUL",
    "limit": f"a whole number from 0 to {MAX_LIMIT}",
    "cursor": "the next_cursor of the page before",
    "operator": "text of 1 to 63 characters of A-Z a-z 0-9 _ . @ -",
    "kind": f"one of {', '.join(get_args(WaitKind))}",
    "part": "hexadecimal digits and dashes",
    "mode": "now or request",
    "on_timeout": "resume, fail or cancel",
    "to": "a subject without wildcards",
    "reply_topic": "a subject without wildcards",
    "cancel_to": "a subject without wildcards",
}
"""What a field takes, in words, where its type does not say it all."""
