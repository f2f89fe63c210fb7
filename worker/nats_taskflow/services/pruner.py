"""Delete old data: ended flows, expired held replies, inbox rows.

Flows go after their retention, inbox rows once no stream can repeat their messages. Deletions come in small transactions, so that no
message waits for them for long.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import structlog

from nats_taskflow.bus.port import PublishFailed
from nats_taskflow.engine.engine import Engine
from nats_taskflow.errors import Unavailable
from nats_taskflow.store.port import Work
from nats_taskflow.tasks import repeat
from nats_taskflow.units import Micros

FirstKept = Callable[[], Awaitable[Mapping[str, int]]]
"""Asks the broker for the first sequence that each inbound stream still has."""


class Pruner:
    """Prunes every `interval` seconds.

    `retain_us`: how long an ended flow is kept. `ids_us`: how long its id is known after its last change. `inbox_us`: how long a message
    is remembered at least. `on_expired` is called when held replies became dead letters, which are to be published then.
    """

    def __init__(
        self,
        engine: Engine,
        first_kept: FirstKept,
        *,
        retain_us: Micros,
        ids_us: Micros,
        inbox_us: Micros,
        on_expired: Callable[[], None] = lambda: None,
        interval: float = 60.0,
        batch: int = 200,
    ) -> None:
        self._engine = engine
        self._first_kept = first_kept
        self._retain_us = retain_us
        self._ids_us = ids_us
        self._inbox_us = inbox_us
        self._on_expired = on_expired
        self._interval = interval
        self._batch = batch
        self._log = structlog.get_logger("pruner")

    async def run(self) -> None:
        """Prune until cancelled."""
        await repeat(self._step, "pruner", rest=self._interval)

    async def _step(self) -> None:
        """Prune, then rest."""
        try:
            await self.prune()
        except (Unavailable, PublishFailed) as error:
            self._log.warning("prune_postponed", why=str(error))
        await asyncio.sleep(self._interval)

    async def prune(self) -> dict[str, int]:
        """Delete everything that may go. Returns how many rows of each kind went."""
        now = self._engine.clock()
        held = await self._repeat(lambda t: t.expire_held(now, self._batch))
        if held:
            self._on_expired()
        pruned = {
            "held": held,
            "flows": await self._repeat(lambda t: t.prune_flows(now - self._retain_us, self._batch)),
            "ids": await self._repeat(lambda t: t.prune_tombstones(now - self._ids_us, self._batch)),
            "inbox": 0,
        }
        for stream, first in (await self._first_kept()).items():
            pruned["inbox"] += await self._repeat(self._inbox_deletion(stream, first, now - self._inbox_us))
        if any(pruned.values()):
            self._log.info("pruned", **pruned)
        return pruned

    def _inbox_deletion(self, stream: str, first: int, before: Micros) -> Work[int]:
        return lambda transaction: transaction.prune_inbox(stream, first, before, self._batch)

    async def _repeat(self, delete: Work[int]) -> int:
        """Repeat a bounded deletion until it deletes nothing. Returns how many rows went."""
        total = 0
        while count := await self._engine.do(delete):
            total += count
        return total
