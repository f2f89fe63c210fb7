"""Say which versions of the server can be used, and what they know."""

from __future__ import annotations

_OLDEST_SERVER = (2, 10, 23)
_BATCHING_SERVER = (2, 12, 0)


def version_objection(version: str) -> str | None:
    """Return an objection to servers that lose a stream when killed (Jepsen, 2025).

    Versions that are no numbers pass.
    """
    if (_release(version) or _OLDEST_SERVER) >= _OLDEST_SERVER:
        return None
    return f"the NATS server is {version}; before {'.'.join(map(str, _OLDEST_SERVER))} a killed server could lose a stream: upgrade it"


def knows_batches(version: str) -> bool:
    """Return whether a server knows atomic batches."""
    return (_release(version) or ()) >= _BATCHING_SERVER


def _release(version: str) -> tuple[int, ...] | None:
    parts = version.partition("-")[0].split(".")
    return tuple(map(int, parts)) if all(part.isdigit() for part in parts) else None
