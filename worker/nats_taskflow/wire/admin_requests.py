"""The body of every operator verb, as a type (CONTRACT 6).

The subject is `taskflow.admin.<verb>`. Unknown fields are refused by name. `held` and `dlq` have several actions, and the field `action`
says which. A request that changes something needs an `operator` (the journal shows `operator:<name>`) and a `reason`. NATS permissions
decide who may ask at all; the name is what the operator says.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from nats_taskflow.flow.lifecycle import FlowStatus
from nats_taskflow.wire import requests
from nats_taskflow.wire.requests import (
    DEFAULT_LIMIT,
    EXPECTED,
    MAX_LIMIT,
    CommandId,
    Cursor,
    FlowId,
    Key,
    Label,
    Limit,
    Name,
    Object,
    Revision,
)

Operator = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_.@-]{1,63}\Z")]
Reason = Annotated[str, Meta(min_length=1, max_length=1024, pattern=r"\A[^\x00]*\Z")]
Number = Annotated[int, Meta(ge=1, le=2**62)]
Part = Annotated[str, Meta(min_length=1, max_length=36, pattern=r"\A[0-9A-Fa-f-]+\Z")]
MAX_LETTERS = 100
ADMIN_EXPECTED = EXPECTED | {"reason": "text of 1 to 1024 characters without NUL"}
"""What each field takes, in words: an operator has to give a reason, an agent need not."""


class AdminRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What every operator request may carry."""

    command_id: CommandId | None = None


class PagedAdminRequest(AdminRequest, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A list, page by page: `cursor` is the `next_cursor` of the page before.

    A page may be short and still have a next one.
    """

    limit: Limit = DEFAULT_LIMIT
    cursor: Cursor | None = None


class Intervention(AdminRequest, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A request that changes something: who, and why."""

    operator: Operator
    reason: Reason


class List(PagedAdminRequest, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """List flows of all owners, newest first, filtered as `list_mine` is.

    `older_than`: last changed before; `set_aside`: only those.
    """

    status: FlowStatus | None = None
    controller: Name | None = None
    owner: Name | None = None
    step: Label | None = None
    topic: Key | None = None
    correlation_id: Key | None = None
    kind: requests.WaitKind | None = None
    older_than: Key | None = None
    since: Key | None = None
    goal: Key | None = None
    set_aside: bool = False


class Show(AdminRequest, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Show one flow."""

    flow_id: FlowId


class Find(AdminRequest, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """List the ids that begin or end with `part`."""

    part: Part


class AdminHistory(PagedAdminRequest, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Show the journal of one flow, oldest first, or with `newest` the newest first."""

    flow_id: FlowId
    newest: bool = False


class AdminSteps(PagedAdminRequest, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """List the observed runs of one flow."""

    flow_id: FlowId


class AdminWaits(PagedAdminRequest, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Show who waits for what, the longest-waiting first.

    `older_than`: for longer; `due_within`: time acts on them by then.
    """

    controller: Name | None = None
    owner: Name | None = None
    step: Label | None = None
    topic: Key | None = None
    correlation_id: Key | None = None
    kind: requests.WaitKind | None = None
    older_than: Key | None = None
    due_within: Key | None = None


class Who(AdminRequest, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Show who waits for a topic, and which replies are held for it.

    With a correlation id: only those of that id.
    """

    topic: Key
    correlation_id: Key | None = None
    limit: Limit = DEFAULT_LIMIT


class AdminWhy(AdminRequest, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Explain one flow in sentences."""

    flow_id: FlowId


class HeldList(PagedAdminRequest, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """List held replies, in the order they came."""

    action: Literal["list"] = "list"
    topic: Key | None = None
    correlation_id: Key | None = None


class HeldMatch(Intervention, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Give a held reply to a flow, at its part `leaf`, as if it had come for it."""

    action: Literal["match"]
    number: Number
    flow_id: FlowId
    leaf: int | None = None
    expected_revision: Revision | None = None


class HeldExpire(Intervention, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Move a held reply to the dead letters now."""

    action: Literal["expire"]
    number: Number


class AdminResume(Intervention, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Resume a flow whatever it waits for; `leaf`: answer only that manual leaf."""

    flow_id: FlowId
    patch: Object | None = None
    leaf: int | Key | None = None
    expected_revision: Revision | None = None


class AdminCancel(Intervention, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Cancel a flow `now`, with `cascade` its children too, or `request` its end."""

    flow_id: FlowId
    mode: Literal["now", "request"] = "now"
    cascade: bool = True
    expected_revision: Revision | None = None


class AdminFail(Intervention, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """End a flow badly; the reason is the failure's."""

    flow_id: FlowId
    expected_revision: Revision | None = None


class Release(Intervention, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Set a flow free again that was set aside, once its row can be read."""

    flow_id: FlowId


class LettersList(PagedAdminRequest, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """List dead letters, oldest first; `grouped`: count them by reason and subject."""

    action: Literal["list"] = "list"
    grouped: bool = True
    letter_reason: Name | None = None
    subject: Key | None = None
    older_than: Key | None = None
    replayed: bool = True


class LettersShow(AdminRequest, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Show one dead letter whole."""

    action: Literal["show"]
    number: Number


class DeadLetterIntervention(Intervention, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """An intervention on dead letters.

    It is done to those of `numbers`, or of a reason, a subject, an age. Without any of these, `all` has to be set. At most `limit` in one
    request. `cursor` goes on, up to letter `up_to` (the first answer says it): what was replayed and died again is a new letter, and a
    loop over all would never end. `dry_run` only says which.
    """

    numbers: Annotated[list[Number], Meta(max_length=MAX_LETTERS)] | None = None
    letter_reason: Name | None = None
    subject: Key | None = None
    older_than: Key | None = None
    all: bool = False
    dry_run: bool = False
    limit: Annotated[int, Meta(ge=1, le=MAX_LETTERS)] = MAX_LETTERS
    cursor: Cursor | None = None
    up_to: Annotated[int, Meta(ge=0, le=2**62)] | None = None


class LettersReplay(DeadLetterIntervention, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Publish dead letters again where they came from, each under a new id.

    Each is published, confirmed, then marked. `rate`: at most per second. `again`: also those that were replayed before.
    """

    action: Literal["replay"]
    rate: Annotated[float, Meta(gt=0, le=1000)] = 50.0
    again: bool = False


class LettersPurge(DeadLetterIntervention, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Forget dead letters in the database; what the stream keeps of them stays.

    `replayed`: only those that were replayed.
    """

    action: Literal["purge"]
    replayed: bool = False


class Stats(AdminRequest, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Count everything."""


class Prune(Intervention, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Delete flows that ended longer ago than `older_than`, at most `limit`.

    A flow whose events are not all published is never deleted.
    """

    older_than: Key
    limit: Limit = MAX_LIMIT


class Backup(Intervention, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Copy the database, whole and checked, to a new file beside it."""


class OperatorLog(PagedAdminRequest, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """List what operators did besides changing flows, newest first."""


OPERATIONS: dict[str, dict[str, type[AdminRequest]]] = {
    "list": {"": List},
    "show": {"": Show},
    "find": {"": Find},
    "history": {"": AdminHistory},
    "steps": {"": AdminSteps},
    "waits": {"": AdminWaits},
    "who": {"": Who},
    "why": {"": AdminWhy},
    "held": {"list": HeldList, "match": HeldMatch, "expire": HeldExpire},
    "resume": {"": AdminResume},
    "cancel": {"": AdminCancel},
    "fail": {"": AdminFail},
    "release": {"": Release},
    "dlq": {"list": LettersList, "show": LettersShow, "replay": LettersReplay, "purge": LettersPurge},
    "stats": {"": Stats},
    "prune": {"": Prune},
    "backup": {"": Backup},
    "log": {"": OperatorLog},
}
"""What each verb takes, by its `action` where it has several; the first is the one without."""
