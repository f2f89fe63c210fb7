"""Send delegation requests and cancel notices, at least once (SEMANTICS 5).

Each is sent after its commit. It counts as sent when the server has it and somebody listens. Where nobody does, or where the stream that
captures it refuses it afterwards, it is sent again, later and later, until its wait is over: then the row is gone. A crash after the
sending and before its note sends the message twice, under the same `Nats-Msg-Id`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog

from nats_taskflow.bus.port import Bus, ForwardedRequest
from nats_taskflow.engine.engine import Engine
from nats_taskflow.errors import FlowError
from nats_taskflow.store.port import Transaction
from nats_taskflow.store.records import RETRY_DELAYS, Batch, DueOutgoing
from nats_taskflow.tasks import repeat
from nats_taskflow.units import SECOND, Micros
from nats_taskflow.wire.headers import CORRELATION_ID, MSG_ID, TRACEPARENT

_AT_ONCE = 256
_MAX_SLEEP = 5.0
"""Seconds after which the loop reads the outbox although nothing woke it."""


class Dispatcher:
    """Sends the outgoing messages of one engine's store."""

    def __init__(self, bus: Bus, engine: Engine) -> None:
        self._bus = bus
        self._engine = engine
        self._woken = asyncio.Event()
        self._log = structlog.get_logger("dispatcher")
        engine.listen(self._on_commit)

    async def run(self) -> None:
        """Send until cancelled."""
        await repeat(self._step, "dispatcher")

    async def _step(self) -> None:
        """Send what is due, and sleep until more is."""
        self._woken.clear()
        try:
            sent = await self.dispatch()
            wait = 0.0 if sent else await self._seconds_to_next()
        except FlowError as error:
            self._log.warning("dispatch_postponed", why=error.message)
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
        results = await self._bus.send([_request(row) for row in due])
        failed = [(row, why) for row, why in zip(due, results, strict=True) if why is not None]
        for row, why in failed:
            if row.attempts == 0:
                self._log.warning(
                    "delegate_not_reached",
                    subject=row.message.subject,
                    flow_id=row.message.flow_id,
                    correlation_id=row.message.headers.get(CORRELATION_ID),
                    traceparent=row.message.headers.get(TRACEPARENT),
                    why=why,
                )
        sent = [row for row, why in zip(due, results, strict=True) if why is None]
        await self._settle(sent, [row for row, _ in failed])
        return len(due)

    async def _settle(self, sent: Sequence[DueOutgoing], failed: Sequence[DueOutgoing]) -> None:
        """Mark what was sent and postpone the rest, in one transaction."""
        now = self._engine.clock()

        def settle(transaction: Transaction) -> None:
            done = [(row.n, row.attempts, _next_try(row, now)) for row in sent]
            transaction.settle_outgoing(done, [(row.n, _next_try(row, now)) for row in failed])

        await self._engine.do(settle)

    async def _seconds_to_next(self) -> float:
        """Return in how many seconds the next message is due, at most `_MAX_SLEEP`."""
        if not self._bus.connected:
            return RETRY_DELAYS[0] / SECOND
        due = await self._engine.store.next_outgoing()
        if due is None:
            return _MAX_SLEEP
        return min(max(due - self._engine.clock(), 0) / SECOND, _MAX_SLEEP)

    async def _sleep(self, seconds: float) -> None:
        """Sleep, at most until a commit adds something to send."""
        try:
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        except TimeoutError:
            return

    def _on_commit(self, batch: Batch) -> None:
        """Wake when a commit added something to send."""
        for flow_id, _, why in batch.refused:
            self._log.warning("delegate_not_reached", flow_id=flow_id, why=f"the stream of the delegate's subject refused it: {why}")
        if batch.outgoing or batch.refused:
            self._woken.set()


def _next_try(row: DueOutgoing, now: Micros) -> Micros:
    first, last = RETRY_DELAYS
    return now + min(first << min(row.attempts, 16), last)


def _request(row: DueOutgoing) -> ForwardedRequest:
    """Return the message as the bus takes it.

    Its id is the same each time it is sent, and nobody can guess it.
    """
    message = row.message
    parts = [message.flow_id, str(message.wait_id), message.kind, *filter(None, [row.nonce])]
    headers = {**message.headers, MSG_ID: ":".join(parts)}
    return ForwardedRequest(subject=message.subject, body=message.body, headers=headers, reply=message.reply)
