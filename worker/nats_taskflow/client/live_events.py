"""Give one flow's events without any rights on streams.

New ones come by subscription, earlier and missed ones from the journal. A flow's events are numbered without gaps, so that the next event
shows a missed one. After a silence the flow's revision shows it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from datetime import datetime

from nats_taskflow.client.events import Event, read_event
from nats_taskflow.client.session import Session
from nats_taskflow.client.transport import TransportMessage
from nats_taskflow.flow.lifecycle import STATUS_AFTER
from nats_taskflow.wire.answers import EventShown, FlowShown

_SILENCE = 15.0


async def live_events(session: Session, flow: FlowShown, after: int) -> AsyncGenerator[Event, None]:
    """Yield the flow's events after `seq` `after`, in order, each once.

    Raises what queries raise. Never ends by itself.
    """
    queue: asyncio.Queue[TransportMessage] = asyncio.Queue()

    async def take(message: TransportMessage) -> None:
        queue.put_nowait(message)

    subscription = await session.transport.serve(session.subjects.event(session.agent, flow.id, "*"), take)
    last = revision = 0
    try:
        while True:
            event: Event | None = None
            async for entry in session.history(flow.id):
                event = _event(entry, flow, event)
                if event.seq > last:
                    last, revision = event.seq, event.revision
                    if last > after:
                        yield event
            while (event := await _next(session, flow.id, queue, last, revision)) is not None:
                last, revision = event.seq, event.revision
                if last > after:
                    yield event
    finally:
        await subscription.close()


async def _next(session: Session, flow_id: str, queue: asyncio.Queue[TransportMessage], last: int, revision: int) -> Event | None:
    """Return the event that follows `last`, or None where something was missed."""
    while True:
        try:
            async with asyncio.timeout(_SILENCE):
                event = read_event(await queue.get())
        except TimeoutError:
            if (await session.snapshot(flow_id)).revision > revision:
                return None
            continue
        if event is not None and event.seq > last:
            return event if event.seq == last + 1 else None


def _event(entry: EventShown, flow: FlowShown, before: Event | None) -> Event:
    """Convert a journal entry to the event that was published for it.

    The journal does not know its place in the stream.
    """
    previous = before.status if before is not None else None
    status = STATUS_AFTER.get(entry.kind)
    return Event(
        id=f"{flow.id}:{entry.seq}",
        flow_id=flow.id,
        seq=entry.seq,
        kind=entry.kind.value,
        revision=entry.revision,
        status=status.value if status is not None else (previous or ""),
        previous_status=previous,
        controller_id=flow.controller_id,
        owner_session_key=flow.owner_session_key,
        current_step=entry.payload.get("current_step") or (before.current_step if before is not None else ""),
        payload=entry.payload,
        at=datetime.fromisoformat(entry.at),
        cause=entry.cause,
        correlation_id=None,
        stream_seq=0,
    )
