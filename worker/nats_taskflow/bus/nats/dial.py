"""Connect, or fail soon with a reason; close without waiting for the peer.

Used by the worker, the commands and the clients. nats-py by itself gives up after 60 attempts, and loops for ever on wrong credentials at
the start (facts: nats-py 2.16).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from nats.aio.client import Client

from nats_taskflow.bus.nats import options as connection_options
from nats_taskflow.bus.nats.options import NatsOptions, public_address
from nats_taskflow.errors import BusLost, TurnedAway

_CLOSE_TIMEOUT = 3.0
Noting = Callable[[Exception], Awaitable[None]]


async def dial(client: Client, options: NatsOptions, error_cb: Noting, *, reconnect_wait: float, **callbacks: Any) -> None:
    """Connect. The connection then survives every outage.

    Raises `BusLost` within `connect_timeout`, `TurnedAway` as soon as the server refuses. `error_cb` and `callbacks` are those of nats-py;
    they must not raise. When cancelled, it leaves no attempt running.
    """
    refused: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    last = ["no answer"]

    async def note(error: Exception) -> None:
        """Note an error that nats-py reports. It must not raise, or the read loop ends."""
        last[0] = connection_options.reason(error)
        refusal = connection_options.refusal(error)
        if not refused.done() and refusal is not None:
            refused.set_result(refusal)
        await error_cb(error)

    arguments = connection_options.arguments(options, reconnect_wait=reconnect_wait) | {"error_cb": note, **callbacks}
    connecting = asyncio.ensure_future(client.connect(**arguments))
    either: set[asyncio.Future[Any]] = {connecting, refused}
    connected = False
    try:
        await asyncio.wait(either, timeout=options.connect_timeout, return_when=asyncio.FIRST_COMPLETED)
        failed = connecting.exception() if connecting.done() and not connecting.cancelled() else None
        connected = connecting.done() and failed is None and client.is_connected
        late = f"cannot be reached within {options.connect_timeout:g} s: {last[0]}"
        why = refused.result() if refused.done() else late if failed is None else f"cannot be reached: {connection_options.reason(failed)}"
    finally:
        if not connected:
            connecting.cancel()
            await asyncio.gather(connecting, return_exceptions=True)
            await close_now(client)
    if not connected:
        kind = TurnedAway if refused.done() else BusLost
        raise kind(f"NATS at {', '.join(map(public_address, options.servers))} {why}")


async def close_now(client: Client) -> Exception | None:
    """Close without draining. Returns the error, if any.

    Draining can hang: a peer that reads nothing must not delay us.
    """
    try:
        async with asyncio.timeout(_CLOSE_TIMEOUT):
            await client.close()
    except Exception as error:  # noqa: BLE001  best effort, whatever state the client is in
        return error
    return None
