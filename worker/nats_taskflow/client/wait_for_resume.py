"""Wait until a flow runs again, without any rights on streams.

Live events say when to look; the journal says what happened.
"""

from __future__ import annotations

import asyncio

from nats_taskflow.client.backoff import Backoff
from nats_taskflow.client.errors import FlowEnded
from nats_taskflow.client.events import TERMINAL, Resumed, read_resume
from nats_taskflow.client.session import Session
from nats_taskflow.client.transport import TransportMessage


async def wait_for_resume(session: Session, flow_id: str, since: int, within: float | None) -> Resumed:
    """Return the first resume after revision `since`.

    Raises `FlowEnded`, or `TimeoutError` after `within` seconds.
    """
    news = asyncio.Event()

    async def hear(message: TransportMessage) -> None:
        if message.subject.rpartition(".")[2] in TERMINAL | {"resumed"}:
            news.set()

    try:
        async with asyncio.timeout(within):
            subscription = await session.transport.serve(session.subjects.event(session.agent, flow_id, "*"), hear)
            try:
                return await _look_until_resumed(session, flow_id, since, news)
            finally:
                await subscription.close()
    except TimeoutError:
        raise TimeoutError(f"flow {flow_id} was not resumed within {within:g} s: it waits on") from None


async def _look_until_resumed(session: Session, flow_id: str, since: int, news: asyncio.Event) -> Resumed:
    """Read the journal now, and again on news, until it has a resume."""
    backoff = Backoff(1.0, 15.0)  # events may be missed while the connection is down, so look now and then without news
    while True:
        news.clear()
        resume = await _look(session, flow_id, since)
        if resume is not None:
            return resume
        await _wait_for_news(news, None if session.transport.lossless else backoff.next())


async def _wait_for_news(news: asyncio.Event, seconds: float | None) -> None:
    """Wait for news, at most some seconds (None: without end)."""
    try:
        async with asyncio.timeout(seconds):
            await news.wait()
    except TimeoutError:
        return


async def _look(session: Session, flow_id: str, since: int) -> Resumed | None:
    """Find the resume in the journal; None while there is none. Raises `FlowEnded`."""
    if (await session.snapshot(flow_id)).revision <= since:
        return None
    async for entry in session.history(flow_id):
        if entry.revision > since and entry.kind == "resumed":
            return read_resume(entry.payload, entry.revision)
        if entry.revision > since and entry.kind in TERMINAL:
            raise FlowEnded(flow_id, entry.kind.value, entry.payload.get("reason"))
    return None
