"""Pull messages from a consumer without a pause, whatever happens to the broker.

nats-py has no continuous consume. One loop per source keeps credit at the server: `_outstanding` messages were asked for and have not come.
As soon as half of it is used, the message callback itself asks for more. Anything else (an error, a reconnect, missed heartbeats) drops the
credit and asks again after a back-off, so the loop cannot spin. Dropped credit may be asked for twice: the caller gets at most one batch
more than it had room for, which `max_ack_pending` bounds.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping

import structlog
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError

from nats_taskflow.bus.nats.connection import ApiDenied, ApiTimeout, NatsConnection
from nats_taskflow.bus.nats.frames import DESCRIPTION, STATUS, read_headers
from nats_taskflow.bus.nats.outbound import Frame
from nats_taskflow.bus.nats.pull_protocol import ACK, PullStatus, next_subject, pull_request, read_delivery, read_status, request_number
from nats_taskflow.bus.port import NO_HEADERS, ConsumerSpec, Delivery
from nats_taskflow.tasks import repeat
from nats_taskflow.wire.headers import PENDING_MESSAGES

_FIRST_DELAY, _LAST_DELAY = 0.1, 3.0
# A request that ends sooner than this without a message counts as an error, whatever its status.
_TOO_SOON = 0.2


class Pull:
    """One continuous pull. Times are seconds.

    `recreate` creates a deleted consumer again; `resume` has unsettled messages delivered again after a reconnect.
    """

    def __init__(
        self,
        connection: NatsConnection,
        source: ConsumerSpec,
        take: Callable[[Delivery], None],
        room: Callable[[], int],
        *,
        recreate: Callable[[ConsumerSpec], Awaitable[None]],
        resume: Callable[[ConsumerSpec], Awaitable[None]],
        heartbeat: float = 5.0,
        expires: float = 30.0,
    ) -> None:
        self._connection = connection
        self._source = source
        self._take = take
        self._room = room
        self._recreate = recreate
        self._resume = resume
        self._heartbeat = heartbeat
        self._expires = expires
        self._next_subject = next_subject(source.stream, source.consumer)
        # The server ends a request whose next message is larger than max_bytes. No message may be, or the pull blocks for ever. When the
        # server's limit is raised, nobody is told: then a request ends without any message (`_on_end`).
        self._max_bytes = max(source.max_bytes, connection.max_payload + 64 * 1024)
        self._batch_max = source.max_ack_pending
        self._inbox = ""
        self._subscription: Subscription | None = None
        self._wakeup = asyncio.Event()
        self._outstanding = 0
        self._low_mark = 0
        self._request = self._request_size = 0
        self._valid_from = 1
        self._requested_at = self._last_sign_at = self._delay = self._not_before = 0.0
        self._consumer_missing = self._resuming = self._got_message = False
        self._loop = asyncio.get_running_loop()
        self._log = structlog.get_logger().bind(stream=source.stream, consumer=source.consumer)
        self.trouble = ""  # why nothing can be delivered; empty while something comes, or could
        self.requests = 0  # pull requests sent so far: tests count them to see that nothing spins

    def wake(self) -> None:
        """Ask `room` again."""
        self._wakeup.set()

    async def run(self) -> None:
        """Deliver until cancelled."""
        connection = self._connection
        self._inbox = connection.client.new_inbox()
        self._subscription = await connection.client.subscribe_directly(f"{self._inbox}.*", self._on_message)
        connection.on_up.append(self._on_up)
        connection.on_denied.append(self._on_denied)
        try:
            await repeat(self._step, "pull")
        finally:
            connection.on_up.remove(self._on_up)
            connection.on_denied.remove(self._on_denied)
            await self._unsubscribe()

    async def _step(self) -> None:
        self._wakeup.clear()
        await self._look()
        await self._pause()

    async def _look(self) -> None:
        """Do what is due: create the consumer again, end a stall, ask for more."""
        if not self._connection.connected or self._loop.time() < self._not_before:
            return
        if self._consumer_missing:
            await self._recreate_consumer()
        if self._resuming:
            await self._resume_unsettled()
        if self._outstanding and self._loop.time() > self._overdue_at():
            await self._end_stall()
        self._refill()

    async def _pause(self) -> None:
        """Wait until woken, or until something is due."""
        now = self._loop.time()
        if self._not_before > now:
            due = self._not_before
        elif self._outstanding:
            due = self._overdue_at()
        else:
            due = now + self._heartbeat
        try:
            async with asyncio.timeout(max(due - now, 0.01)):
                await self._wakeup.wait()
        except TimeoutError:
            return

    def _overdue_at(self) -> float:
        # By then, two heartbeats have been missed.
        return max(self._last_sign_at, self._requested_at) + 2 * self._heartbeat + 0.5

    def _refill(self) -> None:
        """Ask for as much as there is room for, once half of the last credit is used."""
        now = self._loop.time()
        if now < self._not_before or self._consumer_missing or self._resuming or not self._connection.connected:
            return
        target = min(self._room(), self._batch_max)
        want = target - self._outstanding
        if want <= 0 or self._outstanding * 2 > target:
            self._low_mark = 0  # nothing can be asked before all of it has come, or `wake`
            return
        self._request, self._request_size = self._request + 1, want
        self.requests += 1
        self._outstanding += want
        self._low_mark = target // 2
        self._requested_at, self._got_message = now, False
        heartbeat = min(self._heartbeat, self._expires / 2.5)
        body = pull_request(want, expires=self._expires, heartbeat=heartbeat, max_bytes=self._max_bytes)
        self._connection.outbound.put(Frame(self._next_subject, body, f"{self._inbox}.{self._request}"))

    def _on_message(self, subject: bytes, reply: bytes, body: bytes, headers: bytes | None) -> None:
        """Deliver a message, or react to a status message."""
        if not reply.startswith(ACK):
            self._on_status(subject, read_headers(headers) if headers else NO_HEADERS)
            return
        self._note_sign()
        self._got_message = True
        self._outstanding = max(self._outstanding - 1, 0)
        try:
            self._take(read_delivery(subject, reply, body, headers))
        except Exception:  # noqa: BLE001  `take` must not raise; if it does, the message is delivered again after ack_wait
            self._log.exception("pull.take_failed")
        if self._outstanding <= self._low_mark:
            self._refill()

    def _note_sign(self) -> None:
        self._last_sign_at = self._loop.time()
        self._delay = 0.0
        self.trouble = ""

    def _on_status(self, subject: bytes, headers: Mapping[str, str]) -> None:
        """React to the status of a pull request."""
        self._last_sign_at = self._loop.time()
        number, kind = request_number(subject), read_status(headers)
        if kind is PullStatus.ALIVE:
            self._note_sign()
            return
        if number < self._valid_from or kind is PullStatus.COMPLETED:
            return  # completed: everything is accounted for
        if kind in (PullStatus.EXPIRED, PullStatus.TOO_LARGE):
            self._on_end(number, kind, headers)
            return
        reason = headers.get(DESCRIPTION, "")
        if kind is PullStatus.MISSING:
            self._consumer_missing = True  # or JetStream is starting: creating the consumer tells which
        else:
            self._adapt(reason)
        self._log.warning("pull.interrupted", status=headers.get(STATUS, ""), reason=reason)
        self._drop_credit()

    def _on_end(self, request: int, kind: PullStatus, headers: Mapping[str, str]) -> None:
        """Account for a request that ended with part of its batch undelivered.

        Where the first message is too large, that is all of the batch.
        """
        left = headers.get(PENDING_MESSAGES, "")
        if not left.isdigit():
            self._drop_credit()
            return
        self._outstanding = max(0, self._outstanding - int(left))
        if kind is PullStatus.TOO_LARGE and request == self._request and int(left) == self._request_size:
            self._max_bytes *= 2
        if not self._got_message and self._loop.time() - self._requested_at < _TOO_SOON:
            self._back_off()
        self._wakeup.set()

    def _adapt(self, reason: str) -> None:
        """Adapt to limits that an operator has set on the consumer."""
        limit = re.search(r"Exceeded MaxRequest(Batch|MaxBytes) of (\d+)", reason)
        if limit is not None and limit.group(1) == "Batch":
            self._batch_max = max(1, int(limit.group(2)))
        elif limit is not None:
            self._max_bytes = max(1, int(limit.group(2)))
        elif "MaxRequestExpires" in reason:
            self._expires = max(1.0, self._expires / 2)

    def _drop_credit(self) -> None:
        """Drop the credit, and ask again after the back-off."""
        # Answers to older requests no longer count.
        self._outstanding = self._low_mark = 0
        self._valid_from = self._request + 1
        self._back_off()
        self._wakeup.set()

    def _back_off(self) -> None:
        # The delay grows until a message or heartbeat comes.
        self._delay = min(max(self._delay * 2, _FIRST_DELAY), _LAST_DELAY)
        self._not_before = self._loop.time() + self._delay

    def _on_up(self) -> None:
        # The server has dropped the requests, and its last deliveries went to the old connection.
        self._resuming = True
        self._drop_credit()
        self._delay = self._not_before = 0.0

    def _on_denied(self, subject: str) -> None:
        """Slow down where the credentials may no longer pull; `subject` is in lower case."""
        if subject == self._next_subject.lower():
            self._report("denied", f"the credentials may not publish on {self._next_subject}")
            self._delay = max(self._delay, 1.0)
            self._drop_credit()

    def _report(self, what: str, why: str) -> None:
        if why != self.trouble:
            self._log.warning(f"pull.{what}", reason=why)
        self.trouble = why

    async def _end_stall(self) -> None:
        """Ask again after missed heartbeats. Drop the connection if a PING fails, too."""
        self._report("stalled", "no message and no heartbeat")
        self._drop_credit()
        self._not_before = 0.0
        try:
            await self._connection.client.rtt(timeout=2)
        except (NatsError, OSError) as error:
            self._log.warning("pull.unresponsive", reason=repr(error))
            await self._connection.client.force_reconnect()

    async def _recreate_consumer(self) -> None:
        """Create the consumer again if it is gone; otherwise just ask again."""
        try:
            await self._recreate(self._source)
        except ApiTimeout as error:
            self._report("waiting", str(error))
        except Exception as error:  # noqa: BLE001  whatever it is, an operator may repair it: go on trying
            self._report("not_recreated", str(error))
        else:
            self._consumer_missing = False
            return
        self._back_off()

    async def _resume_unsettled(self) -> None:
        """Have unsettled messages delivered again at once, not after their `ack_wait`."""
        self._resuming = False
        try:
            await self._resume(self._source)
        except ApiDenied:
            return
        except ApiTimeout:
            self._consumer_missing = self._resuming = True  # no consumer, or JetStream is starting
            self._back_off()

    async def _unsubscribe(self) -> None:
        """Unsubscribe, so that the server delivers nothing more on the old requests."""
        if self._subscription is None:
            return
        try:
            await self._subscription.unsubscribe()
        except (NatsError, OSError) as error:
            self._log.debug("pull.unsubscribe_failed", reason=repr(error))
