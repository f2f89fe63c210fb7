"""Deliver messages from the read loop itself, without nats-py's queue and task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nats.aio.subscription import Subscription

from nats_taskflow.bus.nats.client import PatchedClient
from nats_taskflow.lazy_log import Logger

Take = Callable[[bytes, bytes, bytes, bytes | None], None]
"""Takes a message in bytes: subject, reply subject (empty: none), payload, header block (None: none). Must not block."""


class DirectDeliveryClient(PatchedClient):
    """A client that delivers some subscriptions' messages from the read loop.

    The methods are private to nats-py: `test_jetstream.py` and `test_outbound.py` in `tests/contract` fail when a release moves them.
    """

    def __init__(self) -> None:
        super().__init__()
        self._direct: dict[int, Take] = {}
        self._log = Logger()

    async def subscribe_directly(self, subject: str, take: Take) -> Subscription:
        """Subscribe, and have `take` called from the read loop.

        Nothing bounds what comes, so the subscriber must have asked for it: a pull request's batch, acknowledgements of its publishes.
        Nothing may be published on the subject before this returns.
        """
        subscription = await self.subscribe(subject)
        self.read_directly(subscription, take)
        return subscription

    def read_directly(self, subscription: Subscription, take: Take) -> None:
        """Have the read loop call `take` for a subscription's messages from now on."""
        self._direct[subscription._id] = take  # noqa: SLF001  the number that the server names in each message

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: Any) -> None:
        """Deliver a message."""
        take = self._direct.get(sid)
        if take is None:
            await super()._process_msg(sid, subject, reply, data, headers)
            return
        try:
            take(subject, reply, data, headers)
        except Exception:  # noqa: BLE001  our defect must not end the read loop, and with it the connection
            self._log.exception("bus.take_failed")

    def _remove_sub(self, sid: int, max_msgs: int = 0) -> None:
        self._direct.pop(sid, None)
        super()._remove_sub(sid, max_msgs)

    async def subscribe_again(self) -> None:
        """Send every subscription again.

        The server has dropped those that the permissions did not cover. The others stay as they are.
        """
        for subscription in tuple(self._subs.values()):
            await self._send_subscribe(subscription)
