"""Get subscriptions back that the server dropped when somebody took the permission away: it does not tell when the permission is back."""

from __future__ import annotations

import asyncio

from nats_taskflow.bus.nats.direct_delivery import ReadingClient
from nats_taskflow.observe.lazy_log import Logger
from nats_taskflow.tasks import keep

_EVERY = 2.0
_TIMEOUT = 2


class Renewal:
    """Asks for all subscriptions again, every two seconds, from the first denial until the server objects to none."""

    def __init__(self, client: ReadingClient) -> None:
        self.unheard = ""
        """Which subscription the credentials do not cover; empty: they cover all."""
        self._client = client
        self._denials = 0
        self._task: asyncio.Task[None] | None = None
        self._log = Logger()

    def deny(self, subject: str) -> None:
        """Note that the server drops a subscription."""
        self._denials += 1
        self.unheard = f"the credentials may not subscribe to {subject}"
        if self._task is None or self._task.done():
            self._task = keep(self._run(), "bus-renewal")

    def stop(self) -> None:
        """Ask no more."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        """Ask again and again."""
        while self.unheard and not self._client.is_closed:
            await asyncio.sleep(_EVERY)
            if not self._client.is_connected:
                continue
            before = self._denials
            try:
                await self._client.subscribe_again()
                await self._client.rtt(timeout=_TIMEOUT)  # what the server has to say about them comes first
            except Exception as error:  # noqa: BLE001  nats-py raises what it likes on a connection that is about to go
                self._log.debug("bus.not_renewed", reason=repr(error))
                continue
            if self._denials == before:
                self.unheard = ""
                self._log.info("bus.subscriptions_renewed")
