"""Keep one NATS connection alive across restarts, and fail loudly.

nats-py gives up after 60 attempts, loops for ever on wrong credentials at the start, stops reconnecting when a callback raises, and stops
reading at a message with unreadable bytes. All of this is dealt with here. When a permission is revoked, the server drops the subscription,
and never says when it would accept it again: `SubscriptionRenewal` tries every two seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from nats.errors import Error as NatsError
from nats.errors import NoRespondersError, SlowConsumerError

from nats_taskflow.bus.nats import options as connection_options
from nats_taskflow.bus.nats.denials import DenialListeners, SubjectDenied, unless_denied
from nats_taskflow.bus.nats.dial import close_now, dial
from nats_taskflow.bus.nats.direct_delivery import DirectDeliveryClient
from nats_taskflow.bus.nats.options import NatsOptions, public_address
from nats_taskflow.bus.nats.outbound import Outbound
from nats_taskflow.errors import NotAllowed
from nats_taskflow.lazy_log import Logger
from nats_taskflow.tasks import keep

__all__ = ["ApiDenied", "ApiTimeout", "NatsConnection", "NatsOptions", "public_address"]

T = TypeVar("T")
_RECONNECT_WAIT = 0.5
_REPEAT_LOG_AFTER = 30.0
_KINDS = 100
"""Kinds of errors whose last log line is remembered. It is bounded, since errors may be worded differently each time."""


class ApiTimeout(Exception):
    """A request got no answer; the message says why.

    `late`: somebody may have heard it, and may have done it.
    """

    def __init__(self, message: str, *, late: bool = False) -> None:
        super().__init__(message)
        self.late = late


class ApiDenied(ApiTimeout):
    """The credentials may not publish on the API subject."""


class NatsConnection:
    """One connection.

    Listeners in `on_up`, `on_down` and `on_denied` are called on the loop, and must be quick.
    """

    def __init__(self, options: NatsOptions) -> None:
        self.options = options
        self.client = DirectDeliveryClient()
        self.outbound = Outbound(self.client)
        self.renewal = SubscriptionRenewal(self.client)
        self.on_up: list[Callable[[], None]] = []
        self.on_down: list[Callable[[], None]] = [self.outbound.wake]
        self.on_denied: DenialListeners = []
        self._lost: asyncio.Future[str] | None = None
        self._closing = False
        self._subscribed = True
        self._last_error = ""
        self._logged: dict[str, float] = {}
        self.dropped = 0
        self._log = Logger()

    @property
    def connected(self) -> bool:
        """Whether the broker answers at the moment, and has all our subscriptions again."""
        return self.client.is_connected and self._subscribed

    @property
    def max_payload(self) -> int:
        """The most bytes the broker takes in one message."""
        return self.client.max_payload

    @property
    def lost(self) -> asyncio.Future[str]:
        """Resolves with the reason when the client closed for good, not by `close`."""
        if self._lost is None:
            self._lost = asyncio.get_running_loop().create_future()
        return self._lost

    @property
    def address(self) -> str:
        """The server it is, or would be, connected to, without credentials."""
        url = self.client.connected_url
        return public_address(url.geturl()) if url is not None else public_address(self.options.servers[0])

    async def open(self) -> None:
        """Connect within `connect_timeout`, trying all servers in turn. Raises `BusLost`."""
        self._closing = True  # until it is connected, nobody has a connection to lose
        await dial(
            self.client,
            self.options,
            self._on_error,
            reconnect_wait=_RECONNECT_WAIT,
            disconnected_cb=self._on_disconnected,
            reconnected_cb=self._on_reconnected,
            closed_cb=self._on_closed,
        )
        self._closing = False
        self.outbound.start()

    async def close(self) -> None:
        """Close without draining. Idempotent; never raises."""
        # nats-py's `drain` can hang for its 30 s.
        self._closing = True
        await self.outbound.stop()
        self.renewal.stop()
        if not self.client.is_closed:
            await self._close_client()

    async def flush(self) -> None:
        """Wait until the server has read everything written so far.

        Raises what nats-py raises.
        """
        # Twice: nats-py's PING overtakes its own buffer, so the first answer may come before the buffer is written.
        await self.client.flush()
        await self.client.flush()

    async def ask(self, subject: str, body: bytes = b"", *, within: float = 2.0) -> bytes:
        """Send a request to the broker's API.

        Raises `ApiDenied`, or `ApiTimeout` within `within` seconds.
        """
        if not self.connected:
            raise ApiTimeout(f"not connected to NATS, so {subject} was not asked")
        inbox, exact = self.options.inbox_prefix.lower(), subject.lower()
        request = self.client.request(subject, body, timeout=within)
        try:
            async with asyncio.timeout(within):  # nats-py counts only from when there was room to write
                answer = await unless_denied(request, self.on_denied, lambda denied: denied == exact or denied.startswith(inbox))
        except SubjectDenied as denied:
            raise ApiDenied(denied.subject) from None
        except NoRespondersError:
            raise ApiTimeout(f"nobody answers on {subject}") from None
        except TimeoutError:
            raise ApiTimeout(f"no answer on {subject} within {within:g} s", late=True) from None
        except (NatsError, OSError) as error:
            raise ApiTimeout(f"no answer on {subject}: {connection_options.reason(error)}") from error
        return answer.data

    async def unless_denied(self, work: Coroutine[Any, Any, T], *subjects: str) -> T:
        """Await `work`. Raises `NotAllowed` as soon as the server denies a subject.

        Without this, a denial would be silence. For a connection that does one thing at a time: the server does not say whose request it
        denies. nats-py gives subjects in lower case; those that begin with one of `subjects` are reported as written there.
        """
        try:
            return await unless_denied(work, self.on_denied)
        except SubjectDenied as denied:
            raise NotAllowed(self.as_written(denied.subject, *subjects)) from None

    def as_written(self, denied: str, *beginnings: str) -> str:
        """Return a denied subject as it is written, as far as that is known.

        nats-py gives it in lower case.
        """
        for beginning in (*beginnings, self.options.inbox_prefix):
            if denied.startswith(beginning.lower()):
                return beginning + denied[len(beginning) :]
        return denied

    async def _close_client(self) -> None:
        error = await close_now(self.client)
        if error is not None:
            self._log.debug("bus.close_failed", reason=repr(error))

    async def _on_error(self, error: Exception) -> None:
        """Note an error that nats-py reports. It must not raise, or the read loop ends."""
        text = connection_options.reason(error)
        self.dropped += isinstance(error, SlowConsumerError)  # one for each message that found its queue full
        denied = connection_options.read_denial(text)
        if denied is not None:
            for listener in tuple(self.on_denied):
                self._call(listener, denied.subject)
            if denied.what == "subscription":
                self.renewal.deny(denied.subject)
        # An error's kind is its text before the first quoted name: a lost permission is reported for every subject. A slow consumer's text
        # has the subject without quotes.
        kind = type(error).__name__ if isinstance(error, SlowConsumerError) else text.partition('"')[0]
        now = asyncio.get_running_loop().time()
        if len(self._logged) >= _KINDS:
            self._logged.clear()
        if now - self._logged.get(kind, -_REPEAT_LOG_AFTER) >= _REPEAT_LOG_AFTER:
            self._log.warning("bus.error", reason=text)
            self._logged[kind] = now
        self._last_error = text

    async def _on_disconnected(self) -> None:
        """Notify the listeners."""
        # This must not raise, or the client never reconnects (nats.py#204).
        if not self._closing:
            self._log.warning("bus.disconnected", reason=self._last_error or "connection closed")
        self._subscribed = False
        for listener in self.on_down:
            self._call(listener)

    async def _on_reconnected(self) -> None:
        """Notify the listeners."""
        self._log.info("bus.reconnected", address=self.address)
        self._subscribed = True  # nats-py calls this once the broker has answered the PING behind the subscriptions
        self._last_error = ""
        self._logged.clear()
        for listener in self.on_up:
            self._call(listener)

    async def _on_closed(self) -> None:
        # At some of the server's errors, nats-py gives up whatever the reconnect settings.
        if not self._closing and not self.lost.done():
            error = self.client.last_error
            self.lost.set_result(connection_options.reason(error) if error is not None else "the client closed the connection")

    def _call(self, listener: Callable[..., None], *arguments: str) -> None:
        """Call a listener. Its defect is logged and does not end the connection."""
        try:
            listener(*arguments)
        except Exception:  # noqa: BLE001  see above; logged with its traceback
            self._log.exception("bus.listener_failed")


_RENEWAL_INTERVAL = 2.0
_RENEWAL_TIMEOUT = 2


class SubscriptionRenewal:
    """Sends all subscriptions again after a denial, until the server denies none."""

    def __init__(self, client: DirectDeliveryClient) -> None:
        self.unheard = ""
        """Why nothing is heard on some subject; empty where the credentials cover all subscriptions."""
        self._client = client
        self._denials = 0
        self._task: asyncio.Task[None] | None = None
        self._log = Logger()

    def deny(self, subject: str) -> None:
        """Note that the server has dropped a subscription; begin to renew."""
        self._denials += 1
        self.unheard = f"the credentials may not subscribe to {subject}"
        if self._task is None or self._task.done():
            self._task = keep(self._run(), "bus-renewal")

    def stop(self) -> None:
        """Stop renewing."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        """Renew until nothing is denied."""
        while self.unheard and not self._client.is_closed:
            await asyncio.sleep(_RENEWAL_INTERVAL)
            if not self._client.is_connected:
                continue
            before = self._denials
            try:
                await self._client.subscribe_again()
                await self._client.rtt(timeout=_RENEWAL_TIMEOUT)  # its objections come first
            except Exception as error:  # noqa: BLE001  nats-py raises what it likes on a connection that is about to go
                self._log.debug("bus.not_renewed", reason=repr(error))
                continue
            if self._denials == before:
                self.unheard = ""
                self._log.info("bus.subscriptions_renewed")
