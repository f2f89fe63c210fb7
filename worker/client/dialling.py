"""Find out where NATS is and who one is there, as the worker and the command line do, and connect once, or fail soon with a reason.

nats-py by itself gives up after 60 attempts, and loops for ever on wrong credentials at the start (facts: nats-py 2.16).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from nats.aio.client import Client
from nats.errors import Error as NatsError

from worker.bus import policy
from worker.bus.options import NatsOptions, nats_options, public_address
from worker.client.transport import Lost
from worker.errors import Refusal

_RECONNECT_WAIT = 0.25
Noting = Callable[[Exception], Awaitable[None]]
Notice = Callable[[], Awaitable[None]]


def options_for(where: str | None, **said: Any) -> NatsOptions:
    """Return how to reach NATS. `where` is a URL (or several, comma separated), a context of the `nats` CLI, or None: as the settings say.

    The settings are those of the command line: environment, `taskflow.toml`, context. `said` replaces fields of `NatsOptions`. Raises
    `Lost` with the sentence of the setting that cannot be right.
    """
    from worker.config import load  # noqa: PLC0415 - a client that is given a connection needs no settings

    flags = {} if where is None else {"nats.url" if ":" in where or "." in where else "nats.context": where}
    try:
        options = nats_options(load(flags).nats)
    except Refusal as wrong:
        raise Lost(str(wrong)) from wrong
    return msgspec.structs.replace(options, **{name: value for name, value in said.items() if value is not None})


async def dial(client: Client, options: NatsOptions, on_error: Noting, on_up: Notice) -> None:
    """Connect for good: every later outage is survived. Raises `Lost` within `connect_timeout` with one sentence."""
    refused: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    last: list[str] = ["no answer"]

    async def note(error: Exception) -> None:
        """Take note of what nats-py reports; must not raise, or the read loop ends."""
        last[0] = policy.reason(error)
        refusal = policy.refusal(error)
        if not refused.done() and refusal is not None:
            refused.set_result(refusal)
        await on_error(error)

    dialling = asyncio.ensure_future(client.connect(**_arguments(options), error_cb=note, reconnected_cb=on_up))
    either: set[asyncio.Future[Any]] = {dialling, refused}
    await asyncio.wait(either, timeout=options.connect_timeout, return_when=asyncio.FIRST_COMPLETED)
    if dialling.done() and not dialling.cancelled() and dialling.exception() is None and client.is_connected:
        return
    where = ", ".join(map(public_address, options.servers))
    failed = dialling.exception() if dialling.done() and not dialling.cancelled() else None
    dialling.cancel()
    await asyncio.wait({dialling})
    await hang_up(client)
    if refused.done():
        raise Lost(f"NATS at {where} {refused.result()}")
    raise Lost(f"NATS at {where} cannot be reached within {options.connect_timeout:g} s: {policy.reason(failed) if failed else last[0]}")


async def hang_up(client: Client) -> None:
    """Close without draining, which can hang; a peer that reads nothing must not hold us up. Never raises."""
    try:
        async with asyncio.timeout(3.0):
            await client.close()
    except (NatsError, OSError, TimeoutError):
        return  # closing is best effort, whatever state the client is in


def _arguments(options: NatsOptions) -> dict[str, Any]:
    """Return what nats-py takes; raises `Lost` for files that cannot be read."""
    try:
        return policy.arguments(options, reconnect_wait=_RECONNECT_WAIT)
    except Refusal as wrong:
        raise Lost(str(wrong)) from wrong
