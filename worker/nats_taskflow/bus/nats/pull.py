"""Pull messages from a durable consumer without a pause, and start again after whatever can happen to the broker.

nats-py has no continuous consume. One loop per source keeps credit at the server: `_outstanding` is how many messages were asked for and
have not come. A request is topped up as soon as half is used, from the message callback itself. Everything else (an error, a reconnect,
missed heartbeats) forgets the credit and asks again after a back-off, so the loop cannot spin. Forgetting may ask twice for the same
room: the caller gets at most a batch more than it had room for, which `max_ack_pending` bounds.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping

import msgspec
import structlog
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError

from nats_taskflow.bus.nats.acks import ACK, delivery_of, request_of
from nats_taskflow.bus.nats.connection import ApiDenied, ApiTimeout, NatsConnection
from nats_taskflow.bus.nats.frames import DESCRIPTION, STATUS, read_headers
from nats_taskflow.bus.nats.outbound import Frame
from nats_taskflow.bus.port import NO_HEADERS, ConsumerSpec, Delivery
from nats_taskflow.tasks import repeat

_PENDING_LEFT = "Nats-Pending-Messages"
_FIRST_DELAY, _LAST_DELAY = 0.1, 3.0
# A request that ends sooner than this without a message is counted as an error, whatever status it ends with.
_TOO_SOON = 0.2
_NS = 1_000_000_000


class Pull:
    """One continuous pull. Times are seconds.

    `recreate` makes the consumer again where it was deleted; `resume` has what was in hand delivered again after a reconnect.
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
        self._next_subject = f"$JS.API.CONSUMER.MSG.NEXT.{source.stream}.{source.consumer}"
        # The server ends a request whose next message is larger than max_bytes: no single message may be, or it blocks for ever. It tells
        # nobody when it carries more from now on; that shows in a request of which nothing comes (`_on_end`).
        self._max_bytes = max(source.max_bytes, connection.max_payload + 64 * 1024)
        self._batch_max = source.max_ack_pending
        self._inbox = ""
        self._subscription: Subscription | None = None
        self._kick = asyncio.Event()
        self._outstanding = 0
        self._low = 0
        self._request = self._want = 0
        self._valid_from = 1
        self._asked_at = self._heard_at = self._delay = self._not_before = 0.0
        self._missing = self._resuming = self._came = False
        self._loop = asyncio.get_running_loop()
        self._log = structlog.get_logger().bind(stream=source.stream, consumer=source.consumer)
        self.trouble = ""  # why nothing can be delivered; empty while something comes, or could
        self.requests = 0  # pull requests sent so far: tests count them to see that nothing spins

    def wake(self) -> None:
        """Look again whether there is room."""
        self._kick.set()

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
        """Look, then wait until there is something to look at."""
        self._kick.clear()
        await self._look()
        await self._pause()

    async def _look(self) -> None:
        """Do whatever is due: make the consumer again, notice a stall, ask for more."""
        if not self._connection.connected or self._loop.time() < self._not_before:
            return
        if self._missing:
            await self._make_again()
        if self._resuming:
            await self._take_up()
        if self._outstanding and self._loop.time() > self._overdue_at():
            await self._unstall()
        self._refill()

    async def _pause(self) -> None:
        """Wait for a kick, or until something is due."""
        now = self._loop.time()
        if self._not_before > now:
            due = self._not_before
        elif self._outstanding:
            due = self._overdue_at()
        else:
            due = now + self._heartbeat
        try:
            async with asyncio.timeout(max(due - now, 0.01)):
                await self._kick.wait()
        except TimeoutError:
            return

    def _overdue_at(self) -> float:
        """Return the loop time at which two heartbeats have been missed."""
        return max(self._heard_at, self._asked_at) + 2 * self._heartbeat + 0.5

    def _refill(self) -> None:
        """Ask for as much as there is room for, if half of the last credit is used."""
        now = self._loop.time()
        if now < self._not_before or self._missing or self._resuming or not self._connection.connected:
            return
        target = min(self._room(), self._batch_max)
        want = target - self._outstanding
        if want <= 0 or self._outstanding * 2 > target:
            self._low = 0  # nothing can be asked before all of it has come, or `wake`
            return
        self._request, self._want = self._request + 1, want
        self.requests += 1
        self._outstanding, self._low = self._outstanding + want, target // 2
        self._asked_at, self._came = now, False
        body = msgspec.json.encode(
            {
                "batch": want,
                "expires": int(self._expires * _NS),
                "idle_heartbeat": int(min(self._heartbeat, self._expires / 2.5) * _NS),
                "max_bytes": self._max_bytes,
            }
        )
        self._connection.outbound.put(Frame(self._next_subject, body, f"{self._inbox}.{self._request}"))

    def _on_message(self, subject: bytes, reply: bytes, body: bytes, headers: bytes | None) -> None:
        """Hand a message over, or react to the server's status."""
        # By the reply subject, not the status header: a stored message can carry any header, also `NATS/1.0 409 …`.
        if not reply.startswith(ACK):
            self._on_status(subject, read_headers(headers) if headers else NO_HEADERS)
            return
        self._hear()
        self._came = True
        self._outstanding = max(self._outstanding - 1, 0)
        try:
            self._take(delivery_of(subject, reply, body, headers))
        except Exception:  # noqa: BLE001  `take` must not raise; if it does, the message stays unsettled and comes again after ack_wait
            self._log.exception("pull.take_failed")
        if self._outstanding <= self._low:
            self._refill()

    def _hear(self) -> None:
        """Note that the request is alive: a message or a heartbeat came."""
        self._heard_at = self._loop.time()
        self._delay = 0.0
        self.trouble = ""

    def _on_status(self, subject: bytes, headers: Mapping[str, str]) -> None:
        """React to a status message of one pull request."""
        self._heard_at = self._loop.time()
        status, reason = headers.get(STATUS, ""), headers.get(DESCRIPTION, "")
        if status == "100":
            self._hear()
            return
        # "Batch Completed" ends a request with max_bytes whose batch was delivered in full: everything is accounted for.
        if request_of(subject) < self._valid_from or reason == "Batch Completed":
            return
        if status in ("404", "408") or (status == "409" and reason.startswith("Message Size Exceeds")):
            self._on_end(request_of(subject), headers)
            return
        if status == "409" and "Deleted" in reason:
            self._missing = True
        elif status == "503":
            self._missing = True  # no consumer, or JetStream is still starting: making it again tells which
        else:
            self._adapt(reason)
        self._log.warning("pull.interrupted", status=status, reason=reason)
        self._forget()

    def _on_end(self, request: int, headers: Mapping[str, str]) -> None:
        """Account for a request that ended by itself with part of its batch undelivered: all of it where its first message is too large."""
        left = headers.get(_PENDING_LEFT, "")
        if not left.isdigit():
            self._forget()
            return
        self._outstanding = max(0, self._outstanding - int(left))
        if headers.get(STATUS) == "409" and request == self._request and int(left) == self._want:
            self._max_bytes *= 2
        if not self._came and self._loop.time() - self._asked_at < _TOO_SOON:
            self._back_off()
        self._kick.set()

    def _adapt(self, reason: str) -> None:
        """Stay within limits the operator set on the consumer."""
        limit = re.search(r"Exceeded MaxRequest(Batch|MaxBytes) of (\d+)", reason)
        if limit is not None and limit.group(1) == "Batch":
            self._batch_max = max(1, int(limit.group(2)))
        elif limit is not None:
            self._max_bytes = max(1, int(limit.group(2)))
        elif "MaxRequestExpires" in reason:
            self._expires = max(1.0, self._expires / 2)

    def _forget(self) -> None:
        """Give the credit up and ask again after the back-off; answers to older requests no longer count."""
        self._outstanding = self._low = 0
        self._valid_from = self._request + 1
        self._back_off()
        self._kick.set()

    def _back_off(self) -> None:
        """Put the next request off, further each time until a message or heartbeat comes."""
        self._delay = min(max(self._delay * 2, _FIRST_DELAY), _LAST_DELAY)
        self._not_before = self._loop.time() + self._delay

    def _on_up(self) -> None:
        """Ask at once after a reconnect: the server has forgotten the requests, and delivered to the old connection till its end."""
        self._resuming = True
        self._forget()
        self._delay = self._not_before = 0.0

    def _on_denied(self, subject: str) -> None:
        """Slow down where the credentials may not pull any more (`subject` in lower case)."""
        if subject == self._next_subject.lower():
            self._complain("denied", f"the credentials may not publish on {self._next_subject}")
            self._delay = max(self._delay, 1.0)
            self._forget()

    def _complain(self, what: str, why: str) -> None:
        """Say why nothing can be delivered, once until it is something else."""
        if why != self.trouble:
            self._log.warning(f"pull.{what}", reason=why)
        self.trouble = why

    async def _unstall(self) -> None:
        """Ask again after missed heartbeats; where the server does not even answer a ping, drop the connection."""
        self._complain("stalled", "no message and no heartbeat")
        self._forget()
        self._not_before = 0.0
        try:
            await self._connection.client.rtt(timeout=2)
        except (NatsError, OSError) as error:
            self._log.warning("pull.unresponsive", reason=repr(error))
            await self._connection.client.force_reconnect()

    async def _make_again(self) -> None:
        """Make the consumer again where it is gone; otherwise just ask again."""
        try:
            await self._recreate(self._source)
        except ApiTimeout as error:
            self._complain("waiting", str(error))
        except Exception as error:  # noqa: BLE001  whatever is wrong with it, the loop goes on trying: an operator may repair it
            self._complain("not_recreated", str(error))
        else:
            self._missing = False
            return
        self._back_off()

    async def _take_up(self) -> None:
        """Have delivered again what may not have come; the broker would wait for its `ack_wait`."""
        self._resuming = False
        try:
            await self._resume(self._source)
        except ApiDenied:
            return
        except ApiTimeout:
            self._missing = self._resuming = True  # no consumer, or JetStream is still starting, as with a 503
            self._back_off()

    async def _unsubscribe(self) -> None:
        """End the interest, so the server delivers nothing more on the old requests."""
        if self._subscription is None:
            return
        try:
            await self._subscription.unsubscribe()
        except (NatsError, OSError) as error:
            self._log.debug("pull.unsubscribe_failed", reason=repr(error))
