"""The answers to operators: flows across owners, waits, held replies, figures.

Times are RFC 3339 UTC.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from nats_taskflow.flow.model import Flow, HeldReply
from nats_taskflow.units import rfc3339
from nats_taskflow.wire.admin_letters import LetterAnswer, LettersAnswer, LettersDone
from nats_taskflow.wire.answers import AdminAnswer, CancelledChildren, FlowShown, show_wait


class SetAsideFlow(msgspec.Struct, frozen=True, kw_only=True):
    """A flow whose row cannot be read, and why."""

    flow_id: str
    controller_id: str
    owner_session_key: str
    current_step: str
    status: str
    why: str


class FlowPageAcross(AdminAnswer, frozen=True, kw_only=True):
    """The answer to `list`: flows of all owners.

    With `set_aside`: what is known of those that cannot be read.
    """

    flows: list[FlowShown]
    set_aside: list[SetAsideFlow] | UnsetType = UNSET
    next_cursor: str | None = None


class FlowAnswer(AdminAnswer, frozen=True, kw_only=True):
    """The answer to `show`."""

    flow: FlowShown


class IdsAnswer(AdminAnswer, frozen=True, kw_only=True):
    """The answer to `find`: at most a handful."""

    ids: list[str]


class WaitAcross(msgspec.Struct, frozen=True, kw_only=True):
    """What one flow waits for, and how long.

    `since`: when it parked. `until`: the next timer or deadline (null: only an event or a person ends it).
    """

    flow_id: str
    controller_id: str
    owner_session_key: str
    current_step: str
    revision: int
    cancel_requested: bool
    wait: dict[str, Any] | None
    progress: dict[str, Any] | None
    since: str | None
    until: str | None


def show_owned_wait(flow: Flow) -> WaitAcross:
    """Return what a waiting flow waits for as operators see it."""
    wait = msgspec.structs.asdict(show_wait(flow))
    return WaitAcross(owner_session_key=flow.owner_session_key, cancel_requested=flow.cancel_requested, **wait)


class WaitPageAcross(AdminAnswer, frozen=True, kw_only=True):
    """The answer to `waits`, the longest-waiting first. `now`: the worker's clock."""

    waits: list[WaitAcross]
    now: str
    next_cursor: str | None = None


class WaiterShown(msgspec.Struct, frozen=True, kw_only=True):
    """One open wait for a reply."""

    flow_id: str
    controller_id: str
    owner_session_key: str
    current_step: str
    leaf: int
    topic: str
    correlation_id: str
    mode: str
    since: str | None
    until: str | None


class HeldShown(msgspec.Struct, frozen=True, kw_only=True):
    """A reply that came before anybody waited for it.

    `number` names it to `match` and `expire`.
    """

    number: int
    topic: str
    correlation_id: str
    event_id: str
    flow_id: str | None
    tenant: str
    arrived_at: str
    expires_at: str
    payload: Any


def show_held(number: int, held: HeldReply) -> HeldShown:
    """Return a held reply as operators see it."""
    return HeldShown(
        number=number,
        topic=held.topic,
        correlation_id=held.correlation_id,
        event_id=held.event_id,
        flow_id=held.flow_id,
        tenant=held.tenant,
        arrived_at=rfc3339(held.arrived_us),
        expires_at=rfc3339(held.expires_us),
        payload=None if held.payload is UNSET else held.payload,
    )


class WhoAnswer(AdminAnswer, frozen=True, kw_only=True):
    """The answer to `who`.

    `more`: there are more waiters, or more held replies, than were asked for.
    """

    waiters: list[WaiterShown]
    held: list[HeldShown]
    more: bool
    now: str


class Reason(msgspec.Struct, frozen=True, kw_only=True):
    """One sentence of `why`.

    `kind`: `waits`, `near` (came near), `next` (what happens by itself), `state`. `fix` can be copied.
    """

    kind: str
    text: str
    fix: str | None = None


class WhyAnswer(AdminAnswer, frozen=True, kw_only=True):
    """The answer to `why`."""

    flow_id: str
    status: str
    sentences: list[Reason]


class HeldPage(AdminAnswer, frozen=True, kw_only=True):
    """The answer to `held` `list`."""

    held: list[HeldShown]
    now: str
    next_cursor: str | None = None


class InterventionAnswer(AdminAnswer, frozen=True, kw_only=True):
    """The answer to an intervention that changed a flow or a held reply."""

    outcome: str
    flow: FlowShown | UnsetType = UNSET
    cancelled_children: CancelledChildren | UnsetType = UNSET


class MostUsed(msgspec.Struct, frozen=True, kw_only=True):
    """The agent whose flows take most of what a quota bounds."""

    agent: str
    used: int


class StatsAnswer(AdminAnswer, frozen=True, kw_only=True):
    """The answer to `stats`.

    `most`: by quota (`open_flows`, `state_bytes`), who takes most of it.
    """

    now: str
    version: str
    worker: dict[str, Any]
    flows: dict[str, int]
    messages: dict[str, int]
    held: int
    set_aside: int
    waits: dict[str, Any]
    dead_letters: int
    unpublished: dict[str, int]
    outgoing: dict[str, int]
    epoch: int
    most: dict[str, MostUsed] = msgspec.field(default_factory=dict)


class PruneAnswer(AdminAnswer, frozen=True, kw_only=True):
    """The answer to `prune`. `more`: there may be more; ask again."""

    pruned: int
    more: bool


class BackupAnswer(AdminAnswer, frozen=True, kw_only=True):
    """The answer to `backup`: one line that says where the copy is, and how big."""

    backup: str


class InterventionShown(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator did."""

    at: str
    actor: str
    verb: str
    about: str
    reason: str


class LogPage(AdminAnswer, frozen=True, kw_only=True):
    """The answer to `log`, newest first."""

    interventions: list[InterventionShown]
    next_cursor: str | None = None


ANSWERS: dict[str, type[AdminAnswer]] = {
    "list": FlowPageAcross,
    "show": FlowAnswer,
    "find": IdsAnswer,
    "waits": WaitPageAcross,
    "who": WhoAnswer,
    "why": WhyAnswer,
    "held.list": HeldPage,
    "done": InterventionAnswer,
    "dlq.list": LettersAnswer,
    "dlq.show": LetterAnswer,
    "dlq.done": LettersDone,
    "stats": StatsAnswer,
    "prune": PruneAnswer,
    "backup": BackupAnswer,
    "log": LogPage,
}
"""The shapes by verb; `history` and `steps` are answered as on `api`, and `done` is what interventions on flows and replies give."""
