"""Make repeated tool calls idempotent.

A tool call has no identity of its own: a model, or the program around it, that got no answer sends the same arguments under a new request
id. So every command gets a key. A caller's own key (`idempotency_key`) identifies the call across processes, for as long as the worker
remembers (SEMANTICS 6). Without one, a key is generated; and as long as a call has no outcome (it runs, it was cancelled, nobody
answered), the same arguments are the same call, for `LIFETIME` seconds. The command id on the wire is derived from the key and its use, so
that nothing has to be stored for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from secrets import token_hex
from typing import Any

import msgspec

from nats_taskflow.client.errors import Internal, Unavailable

LIFETIME = 600.0
"""Seconds for which a call without an outcome is remembered. Longer than retries go on; shorter than until the same call is wanted anew."""
_AT_MOST = 1000


def command_id(session: str, action: str, flow_id: str | None, key: str) -> str:
    """Return the command's id.

    A key is unique within one session, flow and action; an id is unique for the agent.
    """
    return "mcp-" + _digest([session, action, flow_id, key])[:40]


class PendingCalls:
    """The calls without a key that have no outcome yet. `clock` gives seconds."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._open: dict[str, tuple[str, float]] = {}

    @contextmanager
    def key_for(self, action: str, arguments: dict[str, Any]) -> Iterator[str]:
        """Give the key of a call: a new one, or its earlier one while its outcome is open.

        An error inside the block that leaves the outcome open keeps the key; so does a cancellation.
        """
        call = _digest([action, arguments])
        key = self._key_of(call)
        try:
            yield key
        except (Unavailable, Internal):
            raise  # it may have been done, or be done later
        except Exception:
            self._open.pop(call, None)
            raise
        else:
            self._open.pop(call, None)

    def _key_of(self, call: str) -> str:
        """Return the call's key; forget old calls."""
        now = self._clock()
        for old in [known for known, (_, since) in self._open.items() if now - since > LIFETIME]:
            del self._open[old]
        key, _ = self._open.pop(call, (f"auto-{token_hex(12)}", now))
        self._open[call] = (key, now)
        if len(self._open) > _AT_MOST:
            del self._open[next(iter(self._open))]
        return key


def _digest(value: Any) -> str:
    return sha256(msgspec.json.encode(value, order="sorted")).hexdigest()
