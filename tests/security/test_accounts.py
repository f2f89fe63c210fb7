"""An account for each tenant: `deploy/nats/accounts.conf`, loaded as it is, with the whole program and two tenants on it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.errors import NoRespondersError
from nats.js.errors import NoStreamResponseError, ServiceUnavailableError

from tests.e2e import checks
from tests.e2e.stage import Agent, new_id
from tests.eventually import eventually
from tests.security.guarded import Guarded, Refused, flushed

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("accounts")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Guarded]:
    """Server, worker and everybody else, tenants in accounts of their own."""
    async with Guarded(tmp_path_factory.mktemp("accounts"), permissions="accounts.conf") as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def kate(stage: Guarded) -> Agent:
    """The agent of the tenant ACME."""
    return await stage.agent("kate")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ann(stage: Guarded) -> Agent:
    """The agent of the tenant GLOBEX."""
    return await stage.agent("ann")


async def test_a_tenant_starts_waits_delegates_and_is_told_everything_from_its_own_account(stage: Guarded, kate: Agent) -> None:
    refused = Refused()
    billing = await stage.connect("billing", refused=refused)

    async def pay(request: Msg) -> None:
        await request.respond(b'{"paid": true}')

    await billing.subscribe("agent.billing.pay", cb=pay)
    await flushed(billing)
    async with kate.listening("taskflow.evt.>") as events, kate.listening("_INBOX.kate.told") as told:
        flow_id = await kate.start()
        assert (await kate.api("delegate", {"flow_id": flow_id, "to": "agent.billing.pay", "timeout": "10m"}))["ok"]
        assert (await kate.until(flow_id, "running"))["state"]["resume_event"] == {"paid": True}
        await kate.park(flow_id, "account-1")
        await billing.jetstream().publish("agent.delegate.reply", b'{"correlation_id": "account-1", "payload": 5}')
        assert (await kate.until(flow_id, "running"))["state"]["resume_event"] == 5
        acknowledged = await kate.cmd("finish", {"flow_id": flow_id}, "account-finish", reply_to="_INBOX.kate.told")
        assert acknowledged.stream == "TASKFLOW_IN"
        await told.count(1)
        assert json.loads(told.messages[0].data) == await kate.outcome("account-finish")
        await events.until(lambda: f"taskflow.evt.kate.{flow_id}.finished" in {message.subject for message in events.messages})
    assert refused.said == []


async def test_a_tenant_cannot_even_name_what_belongs_to_another(stage: Guarded, kate: Agent, ann: Agent) -> None:
    flow_id = await ann.start()
    with pytest.raises(NoRespondersError):
        await kate.client.request("taskflow.api.ann.status", b"{}", timeout=5)
    for subject in ("taskflow.cmd.ann.cancel", "taskflow.reply.ann.c1", f"taskflow.evt.ann.{flow_id}.finished", "taskflow.resume"):
        with pytest.raises(NoStreamResponseError):
            await kate.js.publish(subject, b"{}", timeout=5)
    with pytest.raises(ServiceUnavailableError):
        await kate.js.account_info()
    looked = json.loads((await kate.client.request("$JS.API.STREAM.INFO.TASKFLOW_EVT", b"", timeout=5)).data)
    assert looked["error"]["err_code"] == 10039  # JetStream not enabled for account
    assert (await ann.flow(flow_id))["status"] == "running"


async def test_a_tenant_that_listens_to_everything_hears_nothing_of_another(kate: Agent, ann: Agent) -> None:
    async with kate.listening(">") as heard:
        inbox = ann.client.new_inbox()
        async with ann.listening(inbox) as told:
            await ann.cmd("start", {"controller_id": "ann/secret", "goal": "secret"}, new_id(), reply_to=inbox)
            await told.count(1)
        hers = await kate.start()
        await heard.until(lambda: any(hers in message.subject for message in heard.messages))
    assert not [message.subject for message in heard.messages if "ann" in message.subject or b"ann/" in message.data]


async def test_an_acknowledgement_cannot_be_put_among_another_tenants_events(stage: Guarded, kate: Agent, ann: Agent) -> None:
    operator = await stage.agent("operator")
    where = f"taskflow.evt.ann.{await ann.start()}.finished"
    await kate.client.publish("taskflow.cmd.kate.run", b"{}", reply=where, headers={"Nats-Msg-Id": "account-ack"})
    assert not (await kate.outcome("account-ack"))["ok"]
    later = await kate.start()

    async def stored() -> bool:
        return any(later in sent.subject for sent in await stage.stream("TASKFLOW_EVT", operator))

    await eventually(stored, within=20.0)
    assert where not in {sent.subject for sent in await stage.stream("TASKFLOW_EVT", operator)}


async def test_a_tenant_uses_up_its_own_connections_and_nobody_elses(stage: Guarded, kate: Agent) -> None:
    """Issue 14, C16: `limits` of accounts.conf."""
    theirs = [await stage.connect("kate") for _ in range(99)]
    assert kate.client.is_connected
    one_more = Client()
    with pytest.raises(NatsError, match="maximum account active connections exceeded"):
        await one_more.connect(stage.server.url, nkeys_seed=str(stage.keys["kate"].seed), allow_reconnect=False, error_cb=Refused().take)
    await one_more.close()
    assert (await (await stage.agent("ann")).api("list_mine"))["ok"]
    for client in theirs:
        await client.close()


async def test_the_worker_is_killed_and_keeps_its_promises(stage: Guarded, kate: Agent) -> None:
    await kate.cmd("start", {"controller_id": "kate/kill", "goal": "live"}, "account-kill")
    await stage.kill()
    await stage.start()
    assert (await kate.outcome("account-kill", within=40.0))["ok"]
    assert await checks.violations(stage, await stage.agent("operator"), accepted=[("kate", "account-kill")]) == []
    lines = "".join(log.read_text(encoding="utf-8") for log in stage.logs()).lower().splitlines()
    # The one right it lacks is told at the start: writing down whose the consumer is, which `taskflow provision --database` does for it.
    assert [line for line in lines if "permission" in line and "$js.api.consumer.create.taskflow_in." not in line] == []
    assert not any("not_rewound" in line for line in lines)
