"""Make ids for commands: random ones, or repeatable ones inside a handler.

An agent's handler may be killed half-way and run again for the same event. Its nth command then has the id it had the first time, so that
the worker answers with the stored outcome instead of applying it twice (SEMANTICS 6).
"""

from __future__ import annotations

from contextvars import ContextVar
from hashlib import sha256
from secrets import token_hex

from nats_taskflow.client.events import Event


class CommandIds:
    """The command ids of one run of a handler: `<flow>-<seq>-<n>-<verb>-<loop>`.

    At most 64 characters of `A-Z a-z 0-9 _ -`. With the verb in it, a handler that decides otherwise in its second run does not get another
    verb's outcome. `loop` tells agents apart that handle the same events.
    """

    def __init__(self, event: Event, loop: str) -> None:
        self._begin = f"{event.flow_id.replace('-', '')}-{event.seq}"
        self._loop = sha256(loop.encode()).hexdigest()[:6]
        self._count = 0

    def next(self, verb: str) -> str:
        """Return the next id."""
        self._count += 1
        return f"{self._begin}-{self._count}-{verb}-{self._loop}"


CURRENT: ContextVar[CommandIds | None] = ContextVar("nats_taskflow.client.command_ids", default=None)
"""The ids of the handler that runs, None outside of handlers."""


def new_id(verb: str) -> tuple[str, bool]:
    """Return the next command's id, and whether it is repeatable.

    It is where a second run of the handler would make the same id again.
    """
    ids = CURRENT.get()
    return (token_hex(16), False) if ids is None else (ids.next(verb), True)
