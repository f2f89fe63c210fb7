"""What reading a message returns, and whose message it is.

It returns a stimulus (`Inbound`), a refusal (`Unusable`) or nothing (`Ignored`).
"""

from __future__ import annotations

import re
from hashlib import blake2b
from typing import Protocol

import msgspec

from nats_taskflow.errors import FlowError, IdMismatch, InvalidRequest, TooDeep, TooLarge, TopicNotBound, UnsupportedVerb
from nats_taskflow.flow.stimuli import RequestNotStored, Stimulus
from nats_taskflow.wire.limits import Malformed
from nats_taskflow.wire.subjects import Subjects

COMMAND_ID = re.compile(r"\A[A-Za-z0-9_-]{1,64}\Z")


class Identity(msgspec.Struct, frozen=True):
    """What makes two messages the same: one key per scope.

    The digest tells a repeat from a conflict (SEMANTICS R5 and 6).
    """

    scope: str
    key: str
    digest: bytes


class Inbound(msgspec.Struct, frozen=True):
    """A message that can be decided.

    `verb` names it for logs and metrics; `reply_to` is the inbox that wants the outcome.
    """

    stimulus: Stimulus
    identity: Identity
    verb: str
    reply_to: str | None = None


class Unusable(msgspec.Struct, frozen=True):
    """A message that nothing can be done with.

    `reason`: the token of its dead letter's subject. `identity` is set where the message has a valid command id: the refusal can be looked
    up under it. `decoded`: it could be read, and only what it asks for is wrong.
    """

    reason: str
    error: FlowError
    identity: Identity | None = None
    reply_to: str | None = None
    decoded: bool = False


def refuse(verdict: Inbound | Unusable, error: FlowError) -> Inbound | Unusable:
    """Refuse a message that could be decoded, under the same identity."""
    if isinstance(verdict, Unusable):
        return verdict
    return Unusable(reason_of(error), error, verdict.identity, verdict.reply_to, decoded=True)


class Ignored(msgspec.Struct, frozen=True):
    """A message that is no reply.

    `why`: a sentence for people. `refused`: it says that a request of ours was not stored.
    """

    why: str
    refused: RequestNotStored | None = None
    reply_to: None = None


_REASONS: tuple[tuple[type[FlowError], str], ...] = (
    (Malformed, "malformed"),
    (TooLarge, "too_large"),
    (TooDeep, "too_deep"),
    (UnsupportedVerb, "unsupported_verb"),
    (IdMismatch, "id_mismatch"),
    (TopicNotBound, "topic_not_bound"),
    (InvalidRequest, "invalid_request"),
)
REASONS = (*(reason for _, reason in _REASONS), "no_correlation")
"""Every reason for a dead letter that reading can have."""


def reason_of(error: FlowError) -> str:
    """Return the dead letter's reason for a message that could not be read."""
    return next((reason for kind, reason in _REASONS if isinstance(error, kind)), error.code)


def digest(*parts: bytes) -> bytes:
    """Return the 16-byte digest of the parts, with NUL between them.

    JSON has no raw NUL, and verbs and ids neither.
    """
    return blake2b(b"\0".join(parts), digest_size=16).digest()


def command_scope(agent: str) -> str:
    """Name the key space of an agent's command ids.

    `cmd` and `api` share it (CONTRACT 3).
    """
    return f"cmd:{agent}"


class Mint(Protocol):
    """Makes ids that have to be unguessable or unique.

    Randomness comes in this way: reading stays pure.
    """

    def flow_id(self) -> str:
        """Return a new UUIDv7 as canonical text; also used for step ids."""
        ...

    def nonce(self) -> str:
        """Return at least 128 random bits in the text form of a UUID.

        It is the correlation id where the caller gives none (SEMANTICS R3).
        """
        ...

    def command_id(self) -> str:
        """Return a new command id, for a request that came without one."""
        ...


class Origin(msgspec.Struct, frozen=True):
    """Who sent a request, by its subject and headers, and the mint for its ids."""

    agent: str
    command_id: str
    trace: str | None
    mint: Mint
    subjects: Subjects = Subjects()
    hops: int = 0
