"""Say in few words what happens to flows in a test: park them, let replies come in as the consumer takes them, look at the journal."""

from __future__ import annotations

import itertools
from datetime import timedelta
from typing import Any

import msgspec

from nats_taskflow.engine.submission import RawMessage, SubmissionOutcome, UnreadableMessage
from nats_taskflow.errors import FlowError
from nats_taskflow.flow.conditions import Timer, to_value
from nats_taskflow.flow.model import Flow
from nats_taskflow.store.records import DeadLetter
from nats_taskflow.wire.inbound import Ignored, Unusable
from nats_taskflow.wire.replies import ReplyBindings
from nats_taskflow.wire.reply_bindings import Binding
from nats_taskflow.wire.subjects import Subjects
from tests.running import Running, an_input

TOPIC = "agent.delegate.reply"
BINDINGS = ReplyBindings([Binding(TOPIC), Binding("agent.route.*"), Binding("team.kate", owners=("kate",))], Subjects())


def external(correlation_id: str | None = "c-1", topic: str = TOPIC, **more: Any) -> dict[str, Any]:
    named = {} if correlation_id is None else {"correlation_id": correlation_id}
    return {"kind": "external_event", "topic": topic, **named, **more}


def timer(run: Running, **ahead: float) -> dict[str, Any]:
    return to_value(Timer(at=run.clock.now + timedelta(**ahead)))


async def started(run: Running, **changes: Any) -> Flow:
    flow = await run.manager.create_managed(an_input(**changes))
    return await run.manager.start_running(flow.id)


async def parked(run: Running, condition: dict[str, Any], **changes: Any) -> Flow:
    flow = await started(run, **changes)
    return await run.manager.set_waiting(flow.id, condition)


async def now(run: Running, flow: Flow) -> Flow:
    found = await run.manager.get(flow.id)
    assert found is not None
    return found


async def journal(run: Running, flow: Flow) -> list[str]:
    return [event.kind.value for event in await run.manager.list_events(flow.id, 100)]


async def dead_letters(run: Running) -> list[DeadLetter]:
    return await run.store.unpublished_dead_letters(0, 100)


class Inlet:
    """Replies as the consumer takes them in: read from bytes, submitted with their place, settled by their outcome."""

    def __init__(self, run: Running, *, stream: str = "TASKFLOW_IN") -> None:
        self._run = run
        self._stream = stream
        self._seq = itertools.count(1)
        self.taken = 0

    async def reply(
        self,
        payload: Any = None,
        *,
        event_id: str | None = None,
        correlation_id: str = "c-1",
        topic: str = TOPIC,
        flow_id: str | None = None,
        arrived_us: int | None = None,
        seq: int | None = None,
    ) -> SubmissionOutcome:
        headers = {} if event_id is None else {"Nats-Msg-Id": event_id}
        named = {} if flow_id is None else {"flow_id": flow_id}
        body = msgspec.json.encode({"correlation_id": correlation_id, "payload": payload, **named})
        return await self.message(topic, headers, body, arrived_us=arrived_us, seq=seq)

    async def message(
        self, subject: str, headers: dict[str, str], body: bytes, *, arrived_us: int | None = None, seq: int | None = None
    ) -> SubmissionOutcome:
        place = next(self._seq) if seq is None else seq
        at = self._run.clock.us if arrived_us is None else arrived_us
        verdict = BINDINGS.read(subject, headers, body, stream=self._stream, seq=place, arrived_us=at)
        assert not isinstance(verdict, Ignored)
        self.taken += 1
        raw = RawMessage(subject=subject, headers=headers, body=body)
        if isinstance(verdict, Unusable):
            what = UnreadableMessage(error=verdict.error, reason=verdict.reason)
            return await self._run.engine.submit(what, verdict.identity, source=self._stream, seq=place, raw=raw)
        return await self._run.engine.submit(verdict.stimulus, verdict.identity, source=self._stream, seq=place, raw=raw)


def code(result: BaseException | object) -> str:
    """The code of a refusal, or the type's name of anything else."""
    return result.code if isinstance(result, FlowError) else type(result).__name__
