"""The ordered publisher by itself: every row leaves once, whoever has many and then few."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import structlog

from nats_taskflow.bus.port import OutgoingMessage, Published
from nats_taskflow.services.ordered_publisher import OrderedPublisher
from nats_taskflow.services.outbox_message import OutboxMessage


class Broker:
    """Takes what is published, and answers when it is told to."""

    connected = True

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.open: list[asyncio.Future[Published]] = []

    def publish(self, message: OutgoingMessage) -> asyncio.Future[Published]:
        return self.publish_all([message])

    def publish_all(self, messages: Sequence[OutgoingMessage]) -> asyncio.Future[Published]:
        self.sent += [message.msg_id for message in messages]
        self.open.append(asyncio.get_running_loop().create_future())
        return self.open[-1]

    def answer(self) -> None:
        self.open.pop(0).set_result(Published(stream="TASKFLOW_EVT", seq=len(self.sent), duplicate=False))


def row(number: int, lane: str = "flow", owner: str = "agent:kate:session:main") -> tuple[OutboxMessage, OutgoingMessage]:
    message = OutgoingMessage(subject=f"events.{lane}", body=b"{}", msg_id=f"{lane}:{number}", headers={})
    return OutboxMessage(n=number, lane=lane, message=message, owner=owner), message


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_flow_whose_agent_has_many_and_then_few_rows_sends_each_once() -> None:
    broker, stored = Broker(), []
    publisher = OrderedPublisher(cast("Any", broker), on_stored=lambda n, _count: stored.append(n), log=structlog.get_logger())
    for number in range(1, 21):
        publisher.put(*row(number))
    await turns()
    publisher.put(*row(21))  # behind the batch that is in flight
    while broker.open:
        broker.answer()
        await turns()
    assert broker.sent == [f"flow:{number}" for number in range(1, 22)]
    assert publisher.pending == {}
    assert stored[-1] == 21
