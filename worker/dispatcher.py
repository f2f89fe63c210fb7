"""Send what delegations have committed: requests and cancel notices, after the commit, at least once (SEMANTICS 5).

A message is forgotten once the server has it and somebody listens. Where nobody does, it is sent again, ever later, until its wait is
over: then the row is gone. A crash between sending and forgetting sends it twice, under the same `Nats-Msg-Id`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog

from worker.bus.base import Asked, Bus
from worker.engine import Engine
from worker.errors import FlowError
from worker.flow.model import Outgoing
from worker.flow.request_headers import CORRELATION_ID, TRACEPARENT
from worker.store.base import Transaction
from worker.store.records import Batch, DueOutgoing
from worker.telemetry import Said
from worker.times import SECOND, Micros

RETRY_FIRST: Micros = SECOND // 4
RETRY_LAST: Micros = 30 * SECOND
_AT_ONCE = 256
_LOOK_EVERY = 5.0
"""Seconds after which the loop looks even when nothing woke it."""


class Dispatcher:
    """Sends the outgoing messages of one engine's store."""

    def __init__(self, bus: Bus, engine: Engine) -> None:
        self._bus = bus
        self._engine = engine
        self._woken = asyncio.Event()
        self._log = structlog.get_logger("dispatcher")
        engine.listen(self._heard)

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            self._woken.clear()
            try:
                sent = await self.dispatch()
                wait = 0.0 if sent else await self._until_next()
            except FlowError as later:
                self._log.warning("dispatch_postponed", why=later.message)
                wait = 1.0
            if wait > 0:
                await self._sleep(wait)

    async def dispatch(self) -> int:
        """Send what is due, once; returns how many messages were due."""
        if not self._bus.connected:
            return 0
        due = await self._engine.store.outgoing_due(self._engine.clock(), _AT_ONCE)
        if not due:
            return 0
        results = await self._bus.send([_asked(row.message) for row in due])
        failed = [(row, why) for row, why in zip(due, results, strict=True) if why is not None]
        for row, why in failed:
            if row.attempts == 0:
                self._log.warning(
                    Said.DELEGATE_NOT_REACHED,
                    subject=row.message.subject,
                    flow_id=row.message.flow_id,
                    correlation_id=row.message.headers.get(CORRELATION_ID),
                    traceparent=row.message.headers.get(TRACEPARENT),
                    why=why,
                )
        sent = [row.n for row, why in zip(due, results, strict=True) if why is None]
        await self._settle(sent, [row for row, _ in failed])
        return len(due)

    async def _settle(self, sent: Sequence[int], failed: Sequence[DueOutgoing]) -> None:
        """Forget what was sent, postpone the rest, in one transaction."""
        now = self._engine.clock()
        later = [(row.n, now + min(RETRY_FIRST << min(row.attempts, 16), RETRY_LAST)) for row in failed]

        def settle(transaction: Transaction) -> None:
            """Write it down."""
            transaction.settle_outgoing(sent, later)

        await self._engine.do(settle)

    async def _until_next(self) -> float:
        """Return the seconds until the next message is due, at most a few."""
        if not self._bus.connected:
            return RETRY_FIRST / SECOND
        due = await self._engine.store.next_outgoing()
        if due is None:
            return _LOOK_EVERY
        return min(max(due - self._engine.clock(), 0) / SECOND, _LOOK_EVERY)

    async def _sleep(self, seconds: float) -> None:
        """Sleep, or until a commit adds something to send."""
        try:
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        except TimeoutError:
            return

    def _heard(self, batch: Batch) -> None:
        """Wake when a commit added something to send."""
        if batch.outgoing:
            self._woken.set()


def _asked(message: Outgoing) -> Asked:
    """Return the message as the bus takes it; its id is the same each time it is sent."""
    headers = {**message.headers, "Nats-Msg-Id": f"{message.flow_id}:{message.wait_id}:{message.kind}"}
    return Asked(subject=message.subject, body=message.body, headers=headers, reply=message.reply)
