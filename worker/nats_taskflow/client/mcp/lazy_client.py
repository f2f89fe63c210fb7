"""Connect to NATS at first use, so that the MCP server may start before NATS runs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec

from nats_taskflow.client.errors import Unavailable
from nats_taskflow.client.flows import FlowClient
from nats_taskflow.client.transport import Lost, Transport

Dial = Callable[[], Awaitable[Transport]]


class Owner(msgspec.Struct, frozen=True):
    """Whose flows these are. Fixed at the start: a model must not choose it."""

    agent: str
    session: str = "main"

    def __str__(self) -> str:
        return f"agent:{self.agent}:session:{self.session}"


class LazyClient:
    """The owner's client, opened at first use.

    `dial` opens a transport or raises `Lost`; `patience`: seconds that a command is tried for.
    """

    def __init__(self, owner: Owner, dial: Dial, *, prefix: str = "taskflow", patience: float = 10.0) -> None:
        self.owner = owner
        self._dial = dial
        self._prefix = prefix
        self._patience = patience
        self._opening: asyncio.Task[FlowClient] | None = None

    async def flows(self) -> FlowClient:
        """Return the client, connected.

        Raises `Unavailable` where NATS cannot be reached, `Forbidden` where the inbox may not be used.
        """
        if self._opening is None or (self._opening.done() and (self._opening.cancelled() or self._opening.exception() is not None)):
            self._opening = asyncio.ensure_future(self._open())
        # Shielded: several calls wait for one connection, and the cancellation of one must not take it from the others.
        return await asyncio.shield(self._opening)

    async def drop(self) -> None:
        """Give up a connection that is closed for good; the next call makes a new one."""
        opening, self._opening = self._opening, None
        if opening is None:
            return
        opening.cancel()  # does nothing to one that is done
        await asyncio.wait({opening})
        if not opening.cancelled() and opening.exception() is None:
            flows = opening.result()
            await flows.close()
            await flows.transport.close()

    async def _open(self) -> FlowClient:
        """Connect."""
        try:
            transport = await self._dial()
        except Lost as lost:
            raise Unavailable(f"{lost}; is it running? `taskflow dev` starts a worker with NATS") from lost
        flows = FlowClient(transport, agent=self.owner.agent, session=self.owner.session, prefix=self._prefix, patience=self._patience)
        try:
            await flows.open()
        except BaseException:
            await transport.close()
            raise
        return flows
