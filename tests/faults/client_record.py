"""Describe what a client knows of its own operations: what it asked for, when, and what it was told."""

from __future__ import annotations

from typing import Literal

import msgspec

from nats_taskflow.units import Micros

Answer = Literal["applied", "refused", "accepted", "in_doubt"]
"""`applied` and `refused`: the outcome came back. `accepted`: a PubAck, the outcome was not asked for. `in_doubt`: nobody answered."""


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One operation, repeated or not. `scope` and `key` name it in the inbox: `cmd:kate` and the command id, or `reply` and the triple.

    `invoked_us` is when it was first sent, `completed_us` when the answer came, by one clock of the client (any origin). `revision` is what
    the answer said of `flow_id`.
    """

    scope: str
    key: str
    verb: str = ""
    answer: Answer
    flow_id: str | None = None
    revision: int | None = None
    invoked_us: Micros = 0
    completed_us: Micros | None = None


class ClientRecord(msgspec.Struct, frozen=True, kw_only=True):
    """All that some clients did. `complete`: nobody else did anything, so that what is not in here came from nowhere."""

    operations: tuple[Operation, ...]
    complete: bool = False


class Sets(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the operations: acknowledged and gone, there though nobody asked, there though nobody was told."""

    lost: frozenset[tuple[str, str]]
    unexpected: frozenset[tuple[str, str]]
    recovered: frozenset[tuple[str, str]]


def command(agent: str, command_id: str, answer: Answer = "accepted", **more: object) -> Operation:
    """Return the operation of a command."""
    return msgspec.convert({"scope": f"cmd:{agent}", "key": command_id, "answer": answer, **more}, Operation)


def reply(topic: str, correlation_id: str, event_id: str, answer: Answer = "accepted", **more: object) -> Operation:
    """Return the operation of a reply."""
    return msgspec.convert({"scope": "reply", "key": f"{topic}\n{correlation_id}\n{event_id}", "answer": answer, **more}, Operation)
