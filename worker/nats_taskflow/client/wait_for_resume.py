"""Wait until a flow runs again: hear its events live, and look into its journal for what was not heard. Needs no rights on streams."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from nats_taskflow.client.backoff import Backoff
from nats_taskflow.client.errors import FlowEnded
from nats_taskflow.client.events import TERMINAL, Resumed, resume_in

if TYPE_CHECKING:
    from nats_taskflow.client.flows import FlowClient
    from nats_taskflow.client.transport import TransportMessage


async def resumed(flows: FlowClient, flow_id: str, since: int, within: float | None) -> Resumed:
    """Return the first resume after revision `since`. Raises `FlowEnded`, or `TimeoutError` after `within` seconds."""
    news = asyncio.Event()

    async def hear(message: TransportMessage) -> None:
        """Look when something happened that matters."""
        if message.subject.rpartition(".")[2] in TERMINAL | {"resumed"}:
            news.set()

    try:
        async with asyncio.timeout(within):
            hearing = await flows.transport.serve(flows.subjects.event(flows.agent, flow_id, "*"), hear)
            try:
                return await _found(flows, flow_id, since, news)
            finally:
                await hearing.close()
    except TimeoutError:
        raise TimeoutError(f"flow {flow_id} was not resumed within {within:g} s: it waits on") from None


async def _found(flows: FlowClient, flow_id: str, since: int, news: asyncio.Event) -> Resumed:
    """Look, and again whenever there is news."""
    backoff = Backoff(1.0, 15.0)  # events may be missed while the connection is down; nothing else makes this look by itself
    while True:
        news.clear()
        found = await _look(flows, flow_id, since)
        if found is not None:
            return found
        await _either(news, None if flows.transport.lossless else backoff.next())


async def _either(news: asyncio.Event, seconds: float | None) -> None:
    """Wait for news, or some seconds; None: for news only."""
    try:
        async with asyncio.timeout(seconds):
            await news.wait()
    except TimeoutError:
        return


async def _look(flows: FlowClient, flow_id: str, since: int) -> Resumed | None:
    """Find the resume in the journal; None while there is none. Raises `FlowEnded`."""
    if (await flows.get(flow_id)).revision <= since:
        return None
    async for entry in flows.history(flow_id):
        if entry.revision > since and entry.kind == "resumed":
            return resume_in(entry.payload, entry.revision)
        if entry.revision > since and entry.kind in TERMINAL:
            raise FlowEnded(flow_id, entry.kind.value, entry.payload.get("reason"))
    return None
