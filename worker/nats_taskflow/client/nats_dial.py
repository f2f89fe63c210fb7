"""Find out where NATS is and who one is there, as the worker and the command line do, and connect."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from nats.aio.client import Client

from nats_taskflow.bus.nats.dial import Noting
from nats_taskflow.bus.nats.dial import dial as dial_for_good
from nats_taskflow.bus.nats.options import NatsOptions, nats_options
from nats_taskflow.client.transport import Lost
from nats_taskflow.errors import Refusal

_RECONNECT_WAIT = 0.25
Notice = Callable[[], Awaitable[None]]


def options_for(where: str | None, **said: Any) -> NatsOptions:
    """Return how to reach NATS. `where` is a URL (or several, comma separated), a context of the `nats` CLI, or None: as the settings say.

    The settings are those of the command line: environment, `taskflow.toml`, context. `said` replaces fields of `NatsOptions`. Raises
    `Lost` with the sentence of the setting that cannot be right.
    """
    from nats_taskflow.config import load  # noqa: PLC0415 - a client that is given a connection needs no settings

    flags = {} if where is None else {"nats.url" if ":" in where or "." in where else "nats.context": where}
    try:
        options = nats_options(load(flags).nats)
    except Refusal as wrong:
        raise Lost(str(wrong)) from wrong
    return msgspec.structs.replace(options, **{name: value for name, value in said.items() if value is not None})


async def dial(client: Client, options: NatsOptions, on_error: Noting, on_up: Notice) -> None:
    """Connect for good: every later outage is survived. Raises `Lost` within `connect_timeout` with one sentence."""
    try:
        await dial_for_good(client, options, on_error, reconnect_wait=_RECONNECT_WAIT, reconnected_cb=on_up)
    except Refusal as wrong:
        raise Lost(str(wrong)) from wrong
