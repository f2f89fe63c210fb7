"""Recognise a PubAck of JetStream where a delegate's answer is expected.

It arrives on the reply subject that the publisher chose. Good: `{"stream", "seq"}`, perhaps with `domain`, `duplicate`, `val`, `batch`,
`count`. Bad: `{"error": {"code", "err_code", "description"}}`, often with the stream and the sequence 0. With any other field it is
somebody's answer (SEMANTICS R0).
"""

from __future__ import annotations

from typing import Any

import msgspec

_GOOD = frozenset({"stream", "seq"})
_ANY = frozenset({"stream", "seq", "domain", "duplicate", "val", "batch", "count", "error"})
_ERROR = frozenset({"code", "err_code", "description"})


class Acknowledgement(msgspec.Struct, frozen=True):
    """A PubAck. `refusal` says why the message is not stored; empty: it is."""

    refusal: str = ""


def acknowledgement_in(value: Any) -> Acknowledgement | None:
    """Return a JSON value as the PubAck that it is, or None."""
    if not isinstance(value, dict) or not value.keys() <= _ANY:
        return None
    if "error" in value:
        error = value["error"]
        if isinstance(error, dict) and error.keys() <= _ERROR and _is_number(error.get("err_code")):
            return Acknowledgement(f"{error.get('description') or 'no reason given'} ({error['err_code']})")
        return None
    return Acknowledgement() if value.keys() >= _GOOD and _is_number(value["seq"]) else None


def _is_number(value: Any) -> bool:
    # For Python true and false are numbers too.
    return isinstance(value, int) and not isinstance(value, bool)
