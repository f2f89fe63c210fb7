"""Shape what operators are answered: flows across owners, waits, held replies, dead letters, figures. Times are RFC 3339 UTC."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from nats_taskflow.wire.answers import CancelledChildren, FlowShown


class AdminAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What every answer begins with."""

    ok: bool = True


class SetAsideFlow(msgspec.Struct, frozen=True, kw_only=True):
    """A flow whose row cannot be read, and why."""

    flow_id: str
    controller_id: str
    owner_session_key: str
    current_step: str
    status: str
    why: str


class FlowPageAcross(AdminAnswer, frozen=True, kw_only=True):
    """The answer to `list`: flows, or with `set_aside` what is known of those that cannot be read."""

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
    """What one flow waits for: `since` it parked, `until` the next timer or deadline (null: only an event or a person ends it)."""

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
    """A reply that came before anybody waited for it. `number` names it to `match` and `expire`."""

    number: int
    topic: str
    correlation_id: str
    event_id: str
    flow_id: str | None
    tenant: str
    arrived_at: str
    expires_at: str
    payload: Any


class WhoAnswer(AdminAnswer, frozen=True, kw_only=True):
    """The answer to `who`. `more`: there are more waiters, or more held replies, than were asked for."""

    waiters: list[WaiterShown]
    held: list[HeldShown]
    more: bool
    now: str


class Reason(msgspec.Struct, frozen=True, kw_only=True):
    """One sentence of `why`. `kind`: `waits`, `near` (came near), `next` (what happens by itself), `state`. `fix` can be copied."""

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


class GroupShown(msgspec.Struct, frozen=True, kw_only=True):
    """Dead letters of one reason and origin."""

    reason: str
    subject: str
    count: int
    replayed: int
    first_at: str
    last_at: str


class LetterShown(msgspec.Struct, frozen=True, kw_only=True):
    """A dead letter. `text` is its body where that is UTF-8, else `base64`; both only in `show`."""

    number: int
    reason: str
    message: str
    subject: str
    stream: str
    seq: int | None
    at: str
    bytes: int
    replays: int
    replayed_at: str | None
    replayed_by: str | None
    headers: dict[str, str] | UnsetType = UNSET
    text: str | UnsetType = UNSET
    base64: str | UnsetType = UNSET


class LettersAnswer(AdminAnswer, frozen=True, kw_only=True):
    """The answer to `dlq` `list`: groups, or letters, oldest first."""

    groups: list[GroupShown] | UnsetType = UNSET
    letters: list[LetterShown] | UnsetType = UNSET
    next_cursor: str | None = None


class LetterAnswer(AdminAnswer, frozen=True, kw_only=True):
    """The answer to `dlq` `show`."""

    letter: LetterShown


class Unreplayed(msgspec.Struct, frozen=True, kw_only=True):
    """A dead letter that could not be published again, and why."""

    number: int
    why: str


class LettersDone(AdminAnswer, frozen=True, kw_only=True):
    """The answer to `dlq` `replay` and `purge`: the letters it was done to (with `dry_run`: would be), and those it failed on.

    `up_to`: the newest letter there was when the first request came; say it again with `cursor`.
    """

    done: list[int]
    failed: list[Unreplayed]
    dry_run: bool
    up_to: int
    next_cursor: str | None = None


class MostUsed(msgspec.Struct, frozen=True, kw_only=True):
    """The agent whose flows take most of what a quota bounds."""

    agent: str
    used: int


class StatsAnswer(AdminAnswer, frozen=True, kw_only=True):
    """The answer to `stats`. `most`: by quota (`open_flows`, `state_bytes`), who takes most of it."""

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
    most: dict[str, MostUsed] = {}


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
