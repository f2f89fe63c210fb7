"""Say who sent a request, and make what has to be random."""

from __future__ import annotations

from typing import Protocol

import msgspec

from nats_taskflow.wire.subjects import Subjects


class Mint(Protocol):
    """Makes what has to be unguessable or unique. Randomness comes in through this, so that reading stays pure."""

    def flow_id(self) -> str:
        """Return a new UUIDv7 as canonical text; also used for step ids."""
        ...

    def nonce(self) -> str:
        """Return at least 128 random bits in the text form of a UUID: the correlation id where the caller gives none (SEMANTICS R3)."""
        ...

    def command_id(self) -> str:
        """Return a new command id, for a request that came without one."""
        ...


class Origin(msgspec.Struct, frozen=True):
    """Who sent a request, as the subject and the headers say, and the mint to use for it."""

    agent: str
    command_id: str
    trace: str | None
    mint: Mint
    subjects: Subjects = Subjects()
    hops: int = 0
