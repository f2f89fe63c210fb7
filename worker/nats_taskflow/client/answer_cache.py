"""Keep a delegate's answers in a key-value bucket.

A repeated request is answered without the handler, whichever process gets it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from hashlib import sha256

import msgspec

from nats_taskflow.client.backoff import Backoff
from nats_taskflow.client.delegate_messages import DelegateAnswer, DelegateCall
from nats_taskflow.client.transport import NoAnswer, NotPermitted, NotStored, Transport

KEPT_FOR = 7 * 86_400.0
"""Seconds; as long as `TASKFLOW_IN` keeps what a repeat could come from."""
_TRY = 5.0
_log = logging.getLogger("nats_taskflow.client.delegate")
_ANSWER = msgspec.json.Decoder(DelegateAnswer)


class AnswerCache:
    """A delegate's answers, for other instances and later processes, too."""

    def __init__(self, transport: Transport, bucket: str) -> None:
        self._transport = transport
        self._bucket = bucket

    async def open(self) -> None:
        """Make the bucket where it is missing. Raises `Trouble`."""
        await self._transport.open_bucket(self._bucket, keep=KEPT_FOR, timeout=_TRY)

    async def answer(self, request: DelegateCall, work: Callable[[DelegateCall], Awaitable[DelegateAnswer]]) -> DelegateAnswer:
        """Return the earlier answer, or make one with `work` and store it first.

        While the bucket cannot be read, `work` is not called: it may have been called before. Raises `NotPermitted`, `Lost`.
        """
        if request.id is None:
            return await work(request)  # without an id, each request is a new one
        key = sha256(f"{request.subject}\n{request.id}".encode()).hexdigest()
        earlier = await self._recall(key)
        if earlier is not None:
            return earlier
        answer = await work(request)
        await self._keep(key, answer)
        return answer

    async def _recall(self, key: str) -> DelegateAnswer | None:
        """Return the answer that was kept, None where there is none."""
        backoff = Backoff(0.1, 10.0)
        while True:
            try:
                value = await self._transport.recall(self._bucket, key, timeout=_TRY)
                return None if value is None else _ANSWER.decode(value)
            except NoAnswer as later:
                _log.warning("the bucket %s cannot be read: %s", self._bucket, later)
                await asyncio.sleep(backoff.next())
            except msgspec.DecodeError:
                _log.error("what the bucket %s has under %s is no answer of ours: made anew", self._bucket, key)
                return None

    async def _keep(self, key: str, answer: DelegateAnswer) -> None:
        """Store an answer, trying until it is stored or refused.

        Where the bucket refuses it, the caller gets it all the same, and a repeat runs the handler again.
        """
        backoff = Backoff(0.1, 10.0)
        while True:
            try:
                await self._transport.keep(self._bucket, key, msgspec.json.encode(answer), timeout=_TRY)
                return
            except (NotStored, NotPermitted) as failed:
                _log.error("an answer is not kept in the bucket %s: %s", self._bucket, failed)
                if isinstance(failed, NotPermitted) or failed.refused:
                    return
                await asyncio.sleep(backoff.next())
