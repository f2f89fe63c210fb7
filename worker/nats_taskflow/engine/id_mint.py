"""Make the ids that must be unique or unguessable."""

from __future__ import annotations

import secrets
from uuid import UUID

import uuid_utils


def new_id() -> str:
    """Make a UUIDv7: its order in time keeps the index append-only."""
    return str(uuid_utils.uuid7())


class IdMint:
    """Makes ids: UUIDv7 for rows, unguessable 128 bits for nonces (SEMANTICS R3)."""

    def flow_id(self) -> str:
        """Return a new UUIDv7 as text."""
        return new_id()

    def nonce(self) -> str:
        """Return 128 random bits in the text form of a UUID.

        Some agents parse the id as a UUID and write it back.
        """
        return str(UUID(bytes=secrets.token_bytes(16)))

    def command_id(self) -> str:
        """Return a new command id."""
        return secrets.token_hex(16)
