"""Send what delegations have committed: requests and cancel notices, after the commit, at least once (SEMANTICS 5).

A message is sent once the server has it and somebody listens. Where nobody does, or where the stream that captures it says afterwards that
it does not take it, it is sent again, ever later, until its wait is over: then the row is gone. A crash between sending and noting it sends
it twice, under the same `Nats-Msg-Id`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog

from nats_taskflow.bus.port import Bus, ForwardedRequest
from nats_taskflow.engine.engine import Engine
from nats_taskflow.errors import FlowError
from nats_taskflow.flow.request_headers import CORRELATION_ID, TRACEPARENT
from nats_taskflow.store.port import Transaction
from nats_taskflow.store.records import AGAIN, Batch, DueOutgoing
from nats_taskflow.tasks import repeat
from nats_taskflow.units import SECOND, Micros

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
        await repeat(self._step, "dispatcher")

    async def _step(self) -> None:
        """Send what is due, and sleep until more is."""
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
        results = await self._bus.send([_asked(row) for row in due])
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
        """Note what was sent, postpone the rest, in one transaction."""
        now = self._engine.clock()

        def settle(transaction: Transaction) -> None:
            """Write it down."""
            done = [(row.n, row.attempts, _again(row, now)) for row in sent]
            transaction.settle_outgoing(done, [(row.n, _again(row, now)) for row in failed])

        await self._engine.do(settle)

    async def _until_next(self) -> float:
        """Return the seconds until the next message is due, at most a few."""
        if not self._bus.connected:
            return AGAIN[0] / SECOND
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
        for flow_id, _, why in batch.refused:
            self._log.warning("delegate_not_reached", flow_id=flow_id, why=f"the stream of the delegate's subject refused it: {why}")
        if batch.outgoing or batch.refused:
            self._woken.set()


def _again(row: DueOutgoing, now: Micros) -> Micros:
    """Return when to send a message again that has not come through."""
    first, last = AGAIN
    return now + min(first << min(row.attempts, 16), last)


def _asked(row: DueOutgoing) -> ForwardedRequest:
    """Return the message as the bus takes it; its id is the same each time it is sent, and nobody can know it before."""
    message = row.message
    parts = [message.flow_id, str(message.wait_id), message.kind, *filter(None, [row.nonce])]
    headers = {**message.headers, "Nats-Msg-Id": ":".join(parts)}
    return ForwardedRequest(subject=message.subject, body=message.body, headers=headers, reply=message.reply)
