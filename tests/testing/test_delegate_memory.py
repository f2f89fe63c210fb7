"""`serve_delegate(memory=…)`: a repeat is answered without the handler, whichever process gets it, and whatever happens to the bucket."""

from __future__ import annotations

import logging
from hashlib import sha256
from typing import Any

import msgspec
import pytest

from nats_taskflow.client import DelegateCall, DelegateError, InvalidRequest, serve_delegate
from nats_taskflow.client.transport import NoAnswer, NotPermitted, NotStored, TransportError, TransportMessage
from nats_taskflow.testing import TaskflowWorld
from nats_taskflow.testing.transport import MemoryTransport


class Paying:
    """A delegate's work, counted."""

    def __init__(self) -> None:
        self.paid = 0

    async def __call__(self, asked: DelegateCall) -> Any:
        self.paid += 1
        if asked.payload == "unknown":
            raise DelegateError(422, "no such invoice")
        return {"paid": self.paid}


async def asked(taskflow: TaskflowWorld, name: str | None, body: Any = None, subject: str = "svc.pay") -> TransportMessage:
    """Ask as anybody may, under an id."""
    headers = {} if name is None else {"Nats-Msg-Id": name}
    return await taskflow.transport().request(subject, msgspec.json.encode(body), headers, timeout=5)


async def test_the_next_process_answers_a_repeat_without_the_handler(taskflow: TaskflowWorld) -> None:
    pay = Paying()
    for _ in range(2):
        async with serve_delegate("svc.pay", pay, on=taskflow.transport(), memory="billing"):
            assert (await asked(taskflow, "invoice-7")).body == b'{"paid":1}'
    assert pay.paid == 1
    async with serve_delegate("svc.pay", pay, on=taskflow.transport(), memory="billing"):
        assert (await asked(taskflow, "invoice-8")).body == b'{"paid":2}'
    async with serve_delegate("svc.pay", pay, on=taskflow.transport()):  # no memory: what was known without it
        assert (await asked(taskflow, "invoice-8")).body == b'{"paid":3}'


async def test_an_error_is_an_answer_too(taskflow: TaskflowWorld) -> None:
    pay = Paying()
    for _ in range(2):
        async with serve_delegate("svc.pay", pay, on=taskflow.transport(), memory="billing"):
            answer = await asked(taskflow, "invoice-9", "unknown")
            assert answer.headers["Nats-Service-Error-Code"] == "422"
            assert answer.body == b'{"error":{"code":"422","message":"no such invoice"}}'
    assert pay.paid == 1


async def test_who_gives_no_id_asks_something_new_each_time(taskflow: TaskflowWorld) -> None:
    pay = Paying()
    async with serve_delegate("svc.pay", pay, on=taskflow.transport(), memory="billing"):
        assert [(await asked(taskflow, None)).body for _ in range(2)] == [b'{"paid":1}', b'{"paid":2}']


async def test_delegates_on_other_subjects_may_share_the_bucket(taskflow: TaskflowWorld) -> None:
    pay = Paying()
    for subject in ("svc.pay", "svc.refund"):
        async with serve_delegate(subject, pay, on=taskflow.transport(), memory="billing"):
            await asked(taskflow, "same", subject=subject)
    assert pay.paid == 2


async def test_a_flow_is_resumed_by_what_was_kept(taskflow: TaskflowWorld) -> None:
    pay = Paying()
    kate = await taskflow.client("kate")
    async with serve_delegate("svc.pay", pay, on=taskflow.transport(), memory="billing"):
        flow = await kate.start(controller_id="kate/x", goal="pay")
        await flow.delegate("svc.pay", {"invoice": 7}, timeout="1h")
        await taskflow.assert_running(flow, state={"resume_event": {"paid": 1}})
    assert pay.paid == 1


async def test_an_answer_is_kept_though_somebody_has_used_its_key_as_an_id(taskflow: TaskflowWorld) -> None:
    pay = Paying()
    for _ in range(2):
        async with serve_delegate("svc.pay", pay, on=taskflow.transport(), memory="billing"):
            key = sha256(b"svc.pay\ninvoice-7").hexdigest()
            await taskflow.transport().publish("$KV.billing.another", b"", msg_id=key, timeout=5)
            assert (await asked(taskflow, "invoice-7")).body == b'{"paid":1}'


class Away(MemoryTransport):
    """A connection whose bucket is away for a while."""

    def __init__(self, taskflow: TaskflowWorld, *, recalls: int = 0, keeps: int = 0, why: TransportError | None = None) -> None:
        super().__init__(taskflow.broker)
        self._recalls, self._keeps, self._why = recalls, keeps, why or NotStored("JetStream is away")

    async def recall(self, bucket: str, key: str, *, timeout: float) -> bytes | None:
        self._recalls -= 1
        if self._recalls >= 0:
            raise NoAnswer("JetStream is away")
        return await super().recall(bucket, key, timeout=timeout)

    async def keep(self, bucket: str, key: str, value: bytes, *, timeout: float) -> None:
        self._keeps -= 1
        if self._keeps >= 0:
            raise self._why
        await super().keep(bucket, key, value, timeout=timeout)


async def test_while_the_bucket_cannot_be_read_nothing_is_done_for_it_might_have_been(taskflow: TaskflowWorld) -> None:
    pay = Paying()
    kate = await taskflow.client("kate")
    async with serve_delegate("svc.pay", pay, on=Away(taskflow, recalls=3), memory="billing", grace=0):
        flow = await kate.start(controller_id="kate/x", goal="pay")
        await flow.delegate("svc.pay", {"invoice": 7}, timeout="1h")
        await taskflow.assert_waiting(flow)
        assert pay.paid == 0
        await taskflow.clock.advance("1m")
        await taskflow.assert_running(flow, state={"resume_event": {"paid": 1}})


async def test_nothing_is_done_after_the_deadline_though_the_bucket_is_back(taskflow: TaskflowWorld) -> None:
    pay = Paying()
    kate = await taskflow.client("kate")
    async with serve_delegate("svc.pay", pay, on=Away(taskflow, recalls=1_000), memory="billing", grace=0):
        flow = await kate.start(controller_id="kate/x", goal="pay")
        await flow.delegate("svc.pay", {"invoice": 7}, timeout="1m", on_timeout="fail")
        await taskflow.clock.advance("1h")
        await taskflow.assert_failed(flow, reason="timed out")
    assert pay.paid == 0


@pytest.mark.parametrize(
    "why, tries", [(NotStored("full", refused=True), 1), (NotPermitted("these credentials may not"), 1), (NotStored("away"), 2)]
)
async def test_the_answer_arrives_though_the_bucket_does_not_take_it_at_once(
    taskflow: TaskflowWorld, caplog: pytest.LogCaptureFixture, why: TransportError, tries: int
) -> None:
    pay = Paying()
    kate = await taskflow.client("kate")
    async with serve_delegate("svc.pay", pay, on=Away(taskflow, keeps=2, why=why), memory="billing"):
        flow = await kate.start(controller_id="kate/x", goal="pay")
        await flow.delegate("svc.pay", {"invoice": 7}, timeout="1h")
        await taskflow.clock.advance("1m")
        await taskflow.assert_running(flow, state={"resume_event": {"paid": 1}})
    said = [record.message for record in caplog.records if record.levelno == logging.ERROR]
    assert said == [f"an answer is not kept in the bucket billing: {why}"] * tries


async def test_what_somebody_else_has_put_there_is_no_answer(taskflow: TaskflowWorld, caplog: pytest.LogCaptureFixture) -> None:
    pay = Paying()
    transport = taskflow.transport()
    async with serve_delegate("svc.pay", pay, on=transport, memory="billing"):
        await asked(taskflow, "invoice-7")
    (kept,) = taskflow.broker.streams["KV_billing"].messages.values()
    await taskflow.publish(kept.subject, {"not": "ours"}, msg_id="forged")
    async with serve_delegate("svc.pay", pay, on=transport, memory="billing"):
        assert (await asked(taskflow, "invoice-7")).body == b'{"paid":2}'
    assert "is no answer of ours: made anew" in caplog.text


async def test_a_bucket_has_a_name_that_nats_takes(taskflow: TaskflowWorld) -> None:
    with pytest.raises(InvalidRequest, match=r"memory is a bucket's name.*not 'no\.dots'"):
        serve_delegate("svc.pay", Paying(), on=taskflow.transport(), memory="no.dots")
