"""Read deliveries by the subject they arrived on: commands, replies, or neither; and make the ids that must be random."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from uuid import UUID

import uuid_utils

from nats_taskflow.bus.port import Delivery
from nats_taskflow.engine.quota import UNMETERED, CommandQuota
from nats_taskflow.services.consumer import Reader, Verdict
from nats_taskflow.units import Micros
from nats_taskflow.wire.codec import read_command, stray
from nats_taskflow.wire.inbound import refused_verdict
from nats_taskflow.wire.replies import ReplyBindings
from nats_taskflow.wire.subjects import Subjects


def new_id() -> str:
    """Make a UUIDv7: its order in time keeps the index append-only."""
    return str(uuid_utils.uuid7())


class IdMint:
    """Makes ids: UUIDv7 for rows, 128 random bits for what must not be guessed (SEMANTICS R3)."""

    def flow_id(self) -> str:
        """Return a new UUIDv7 as text."""
        return new_id()

    def nonce(self) -> str:
        """Return 128 random bits in the text form of a UUID: there are agents that parse them as one and write them back."""
        return str(UUID(bytes=secrets.token_bytes(16)))

    def command_id(self) -> str:
        """Return a new command id."""
        return secrets.token_hex(16)


def reader(
    subjects: Subjects, bindings: ReplyBindings, mint: IdMint, offset: Callable[[], Micros] = lambda: 0, meter: CommandQuota = UNMETERED
) -> Reader:
    """Return what turns a delivery into a verdict. Commands count against their agent's quota by when they were stored, not when read.

    `offset` says how far the broker's clock is ahead of ours: a reply arrived by its clock, and deadlines are by ours (SEMANTICS R9).
    """
    commands = f"{subjects.prefix}.cmd."

    def read(delivery: Delivery) -> Verdict:
        """Read one delivery. Never raises for bad input."""
        subject = delivery.subject
        if subject.startswith(commands):
            parsed = subjects.parse_command(subject)
            if parsed is None:
                return stray(subject)
            verdict = read_command(*parsed, delivery.body, delivery.headers, mint, require_id=True, subjects=subjects)
            beyond = meter.refusal(parsed[0], len(delivery.body), delivery.arrived_us)
            return verdict if beyond is None else refused_verdict(verdict, beyond)
        place = {"stream": delivery.stream, "seq": delivery.seq, "arrived_us": delivery.arrived_us - offset()}
        return bindings.read(subject, delivery.headers, delivery.body, **place)  # type: ignore[arg-type]  # place's values fit

    return read
