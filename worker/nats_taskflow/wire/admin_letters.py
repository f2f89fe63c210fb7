"""The answers to operators about dead letters. Times are RFC 3339 UTC."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

from nats_taskflow.wire.answers import AdminAnswer


class GroupShown(msgspec.Struct, frozen=True, kw_only=True):
    """Dead letters of one reason and origin."""

    reason: str
    subject: str
    count: int
    replayed: int
    first_at: str
    last_at: str


class LetterShown(msgspec.Struct, frozen=True, kw_only=True):
    """A dead letter.

    `text` is its body where that is UTF-8, else `base64`; both only in `show`.
    """

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
    """The answer to `dlq` `replay` and `purge`: the letters it was done to.

    With `dry_run`: those it would be done to. It names those it failed on, too. `up_to`: the newest letter there was when the first request
    came; send it again with `cursor`.
    """

    done: list[int]
    failed: list[Unreplayed]
    dry_run: bool
    up_to: int
    next_cursor: str | None = None
