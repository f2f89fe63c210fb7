"""Who may do what: every role of `deploy/nats/permissions.conf` on every kind of subject, and the whole program under these roles."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from nats.aio.client import Client
from nats.aio.msg import Msg

from nats_taskflow.bus.nats.server import find_server
from nats_taskflow.client import Agent as Loop
from nats_taskflow.client import Event, Flow, FlowClient, Forbidden
from tests.e2e import checks
from tests.e2e.stage import Json, Stage, new_id
from tests.eventually import eventually
from tests.security.guarded import TEMPLATES, Guarded, Refused, filled, flushed, names, new_key

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("permissions")]

F = "01900000-0000-7000-8000-000000000001"
ROLES = ("provisioner", "worker", "operator", "observer", "reader", "kate", "ann", "loop", "billing")
# Subject and who may publish on it; everybody else may not. `kate` and `ann` are agents, `loop` and the
# delegate `billing` work for kate.
PUBLISH: dict[str, tuple[str, ...]] = {
    "taskflow.cmd.kate.start": ("kate", "loop", "worker"),
    "taskflow.cmd.ann.start": ("ann", "worker"),
    "taskflow.cmd.kate.start.more": (),
    "taskflow.api.kate.status": ("kate", "loop"),
    "taskflow.api.ann.status": ("ann",),
    "taskflow.admin.list": ("operator", "observer"),
    "taskflow.admin.why": ("operator", "observer"),
    "taskflow.admin.cancel": ("operator",),
    "taskflow.admin.dlq": ("operator",),
    "taskflow.admin.held": ("operator",),
    "taskflow.admin.backup": ("operator",),
    "taskflow.resume": ("operator", "worker"),
    "taskflow.reply.kate.c1": ("billing", "worker"),
    "taskflow.reply.ann.c1": ("worker",),
    "agent.delegate.reply": ("billing", "worker"),
    "agent.billing.pay": ("worker",),
    f"taskflow.evt.kate.{F}.resumed": ("worker",),
    "taskflow.dlq.malformed": ("worker",),
    "_INBOX.kate.x": ("worker",),
    "_INBOX.ann.x": ("worker",),
    "_INBOX_worker.x.1": (),
    "_INBOX_provisioner.x": (),
    "_R_.abc.def": (),
    "$JS.ACK.TASKFLOW_IN.worker.1.1.1.1.0": ("worker",),
    "$JS.ACK.TASKFLOW_IN.replies.1.1.1.1.0": ("worker",),
    "$JS.ACK._.hash.TASKFLOW_IN.worker.1.1.1.1.0.r": ("worker",),
    "$JS.ACK._.hash.TASKFLOW_IN.replies.1.1.1.1.0.r": ("worker",),
    "$JS.ACK.TASKFLOW_EVT.reader.1.1.1.1.0": ("reader",),
    "$JS.ACK._.hash.TASKFLOW_EVT.reader.1.1.1.1.0.r": ("reader",),
    "$JS.API.CONSUMER.MSG.NEXT.TASKFLOW_IN.worker": ("worker",),
    "$JS.API.CONSUMER.MSG.NEXT.TASKFLOW_IN.replies": ("worker",),
    "$JS.API.CONSUMER.MSG.NEXT.TASKFLOW_EVT.reader": ("reader",),
    "$JS.ACK.TASKFLOW_EVT.triage.1.1.1.1.0": ("loop",),
    "$JS.ACK._.hash.TASKFLOW_EVT.triage.1.1.1.1.0.r": ("loop",),
    "$JS.API.CONSUMER.MSG.NEXT.TASKFLOW_EVT.triage": ("loop",),
    "$JS.API.CONSUMER.RESET.TASKFLOW_EVT.triage": ("loop",),
    "$JS.API.CONSUMER.CREATE.TASKFLOW_EVT.triage.taskflow.evt.kate.*.*": ("provisioner",),
    "$JS.API.CONSUMER.DELETE.TASKFLOW_EVT.triage": ("provisioner",),
    "_INBOX.loop.x": ("worker",),
    "$JS.API.CONSUMER.RESET.TASKFLOW_IN.worker": ("worker",),
    "$JS.API.CONSUMER.RESET.TASKFLOW_IN.replies": ("worker", "provisioner"),
    "$JS.API.CONSUMER.RESET.TASKFLOW_EVT.reader": (),
    "$JS.API.CONSUMER.INFO.TASKFLOW_IN.worker": ("worker", "operator", "provisioner"),
    "$JS.API.CONSUMER.INFO.TASKFLOW_IN.replies": ("worker", "operator", "provisioner"),
    "$JS.API.CONSUMER.INFO.TASKFLOW_EVT.reader": ("reader", "operator", "provisioner"),
    "$JS.API.CONSUMER.CREATE.TASKFLOW_IN.worker": ("provisioner",),
    "$JS.API.CONSUMER.CREATE.TASKFLOW_IN.replies": ("provisioner",),
    "$JS.API.CONSUMER.CREATE.TASKFLOW_IN.spy": (),
    "$JS.API.CONSUMER.CREATE.TASKFLOW_EVT.reader": ("provisioner",),
    "$JS.API.CONSUMER.CREATE.TASKFLOW_EVT.mine.taskflow.evt.kate.>": ("provisioner",),
    "$JS.API.CONSUMER.DURABLE.CREATE.TASKFLOW_IN.worker": (),
    "$JS.API.CONSUMER.DURABLE.CREATE.TASKFLOW_IN.replies": (),
    "$JS.API.CONSUMER.DELETE.TASKFLOW_IN.worker": ("provisioner",),
    "$JS.API.CONSUMER.DELETE.TASKFLOW_IN.replies": ("provisioner",),
    "$JS.API.CONSUMER.PAUSE.TASKFLOW_IN.worker": (),
    "$JS.API.CONSUMER.PAUSE.TASKFLOW_IN.replies": (),
    "$JS.API.STREAM.CREATE.TASKFLOW_IN": ("provisioner",),
    "$JS.API.INFO": ("provisioner", "operator"),
    "$JS.API.STREAM.UPDATE.TASKFLOW_IN": ("provisioner",),
    "$JS.API.STREAM.CREATE.MINE": (),
    "$JS.API.STREAM.INFO.TASKFLOW_IN": ("worker", "operator", "provisioner"),
    "$JS.API.STREAM.DELETE.TASKFLOW_IN": (),
    "$JS.API.STREAM.PURGE.TASKFLOW_EVT": (),
    "$JS.API.STREAM.MSG.DELETE.TASKFLOW_IN": (),
    "$JS.API.STREAM.MSG.GET.TASKFLOW_IN": ("operator",),
    "$JS.API.DIRECT.GET.TASKFLOW_EVT": ("operator",),
    "$JS.API.STREAM.SNAPSHOT.TASKFLOW_IN": (),
    "$SRV.PING.taskflow": ("operator", "observer"),
    "$SYS.REQ.USER.INFO": ("worker", "operator", "observer"),
    "$SYS.REQ.SERVER.PING": (),
    "anything.else": (),
}
SUBSCRIBE: dict[str, tuple[str, ...]] = {
    ">": (),
    "taskflow.>": (),
    "taskflow.cmd.kate.*": (),
    "taskflow.api.*.*": ("worker",),
    "taskflow.admin.*": ("worker",),
    "$SRV.PING.taskflow": ("worker",),
    "taskflow.reply.kate.*": ("worker",),
    "agent.delegate.reply": ("worker",),
    "agent.billing.pay": ("billing",),
    "taskflow.evt.kate.*.*": ("kate", "loop", "operator", "observer"),
    "taskflow.evt.ann.*.*": ("ann", "operator", "observer"),
    "taskflow.evt.>": ("operator", "observer"),
    "taskflow.dlq.*": ("operator",),
    "_INBOX.>": (),
    "_INBOX.kate.*": ("kate",),
    "_INBOX.ann.*": ("ann",),
    "_INBOX.billing.*": ("billing",),
    "_INBOX.reader.*": ("reader",),
    "_INBOX.loop.*": ("loop",),
    "_INBOX.operator.*": ("operator",),
    "_INBOX.observer.*": ("observer",),
    "_INBOX_worker.>": ("worker",),
    "_INBOX_provisioner.*": ("provisioner",),
    "$JS.ACK.TASKFLOW_IN.worker.>": (),
    "$JS.ACK.TASKFLOW_IN.replies.>": (),
    "$JS.API.>": (),
    "$JS.EVENT.ADVISORY.>": ("operator",),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Guarded]:
    """A server with the templates, everything provisioned and no worker."""
    stage = Guarded(tmp_path_factory.mktemp("matrix"))
    await stage.server.start()
    assert (await stage.provision()).code == 0
    yield stage
    await stage.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def logged_in(server: Guarded) -> dict[str, tuple[Client, Refused]]:
    """A connection of each role, and what the server refuses it."""
    noted = {role: Refused() for role in ROLES}
    return {role: (await server.connect(role, refused=noted[role]), noted[role]) for role in ROLES}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Guarded]:
    """The whole: server, provisioned streams, and a worker, each with its role."""
    async with Guarded(tmp_path_factory.mktemp("roles")) as made:
        yield made


async def test_every_role_is_allowed_something() -> None:
    for table in (PUBLISH, SUBSCRIBE):
        assert {role for allowed in table.values() for role in allowed} == set(ROLES)


@pytest.mark.parametrize("role", ROLES)
async def test_a_role_may_publish_exactly_what_the_table_says(logged_in: dict[str, tuple[Client, Refused]], role: str) -> None:
    client, refused = logged_in[role]
    refused.taken()
    for subject in PUBLISH:
        await client.publish(subject, b"")
    await flushed(client)
    assert refused.subjects() == {subject.lower() for subject, allowed in PUBLISH.items() if role not in allowed}


@pytest.mark.parametrize("role", ROLES)
async def test_a_role_may_subscribe_to_exactly_what_the_table_says(logged_in: dict[str, tuple[Client, Refused]], role: str) -> None:
    client, refused = logged_in[role]
    refused.taken()
    subscriptions = [await client.subscribe(subject) for subject in SUBSCRIBE]
    await flushed(client)
    assert refused.subjects() == {subject.lower() for subject, allowed in SUBSCRIBE.items() if role not in allowed}
    for subscription in subscriptions:
        await subscription.unsubscribe()


async def test_nobody_gets_in_with_a_key_that_is_not_listed_or_with_none(server: Guarded) -> None:
    server.keys["stranger"] = new_key(server.folder, "stranger")
    ended = await server.refused(**server.credentials("stranger"))
    assert ended.code == 69
    assert "refuses the credentials" in ended.stderr
    ended = await server.refused(TASKFLOW_NATS_NKEY="")
    assert ended.code == 69
    assert "refuses the credentials" in ended.stderr


async def test_the_worker_cannot_provision_and_says_which_permission_is_missing(tmp_path: Path) -> None:
    stage = Guarded(tmp_path)
    await stage.server.start()
    try:
        ended = await stage.refused()
        assert ended.code == 78
        assert "lack a permission: publish on $JS.API.STREAM.CREATE.TASKFLOW_IN" in ended.stderr
        assert (await stage.provision("worker")).code == 78
        assert [(await stage.provision()).code for _ in range(2)] == [0, 0]
        await stage.start()
    finally:
        await stage.close()


async def test_a_server_with_unfilled_templates_does_not_start(tmp_path: Path) -> None:
    for template in TEMPLATES.glob("*.conf"):
        (tmp_path / template.name).write_text(template.read_text(encoding="utf-8"), encoding="utf-8")
    checked = await asyncio.to_thread(check, tmp_path / "nats-server.conf")
    assert checked.returncode != 0
    assert b"nkey" in checked.stderr.lower()


@pytest.mark.parametrize("permissions", ["permissions.conf", "accounts.conf"])
async def test_the_production_configuration_is_valid_once_it_is_filled_in(tmp_path: Path, permissions: str) -> None:
    filled(tmp_path, {name: new_key(tmp_path, name) for name in names()})
    config = tmp_path / "nats-server.conf"
    config.write_text(config.read_text(encoding="utf-8").replace('"permissions.conf"', f'"{permissions}"'), encoding="utf-8")
    checked = await asyncio.to_thread(check, config)
    assert checked.returncode == 0, checked.stderr


def check(config: Path) -> subprocess.CompletedProcess[bytes]:
    """Have the server check a configuration, as the README says."""
    return subprocess.run([str(find_server()), "--config", str(config), "-t"], capture_output=True, check=False, timeout=30)


# --- the program under its roles -----------------------------------------------------------------------------------------------------


async def test_an_agent_does_every_verb_of_the_contract_with_its_own_rights(stage: Guarded) -> None:
    refused = Refused()
    kate = await stage.agent("kate", refused=refused)
    held = await kate.start(hold=True)
    verbs: list[tuple[str, Json]] = [
        ("run", {}),
        ("advance", {"patch": {"a": 1}, "current_step": "two"}),
        ("observe", {"run_id": "r1", "task": "look", "status": "running"}),
        ("wait", {"wait_condition": {"kind": "manual"}}),
        ("resume", {"reason": "go on"}),
        ("finish", {"final_state": {"b": 2}}),
    ]
    for verb, body in verbs:
        answer = await kate.api(verb, {"flow_id": held, **body})
        assert answer["ok"], (verb, answer)
    for verb, body in (("fail", {"reason": "test"}), ("cancel", {"reason": "test"})):
        assert (await kate.api(verb, {"flow_id": await kate.start(), **body}))["ok"]
    for query in ("status", "steps", "history", "waits"):
        assert (await kate.api(query, {"flow_id": held}))["ok"], query
    assert (await kate.api("list_mine"))["count"] == 3
    inbox = kate.client.new_inbox()
    async with kate.listening(inbox) as told:
        await kate.cmd("start", {"controller_id": "kate/cmd", "goal": "by command"}, "by-cmd", reply_to=inbox)
        await told.count(1)
    assert json.loads(told.messages[0].data) == await kate.outcome("by-cmd")
    assert refused.said == []


async def test_a_delegation_is_asked_and_answered_by_a_delegate_with_its_own_rights(stage: Guarded) -> None:
    refused = Refused()
    kate, billing = await stage.agent("kate", refused=refused), await stage.connect("billing", refused=refused)

    async def pay(request: Msg) -> None:
        await request.respond(b'{"paid": true}')

    flow_id = await kate.start()
    unreached = {"flow_id": flow_id, "to": "agent.billing.pay", "payload": {"eur": 3}, "timeout": "10m"}
    assert (await kate.api("delegate", unreached))["ok"]
    # Nobody listens yet, and the worker hears that: its role lets it subscribe where the answers go.
    await eventually(lambda: "no responders" in "".join(log.read_text() for log in stage.logs()), within=20.0)
    serving = await billing.subscribe("agent.billing.pay", cb=pay)
    await flushed(billing)
    assert (await kate.until(flow_id, "running", within=60.0))["state"]["resume_event"] == {"paid": True}
    await serving.unsubscribe()

    await kate.park(flow_id, "shared-1")
    await billing.jetstream().publish("agent.delegate.reply", b'{"correlation_id": "shared-1", "payload": 5}')
    assert (await kate.until(flow_id, "running"))["state"]["resume_event"] == 5
    assert refused.said == []


async def test_an_agent_hears_its_own_events_and_asks_for_what_it_missed(stage: Guarded) -> None:
    refused = Refused()
    kate, ann = await stage.agent("kate", refused=refused), await stage.agent("ann", refused=refused)
    missed = await kate.start()
    async with kate.listening("taskflow.evt.kate.*.*") as live:
        await ann.start()
        hers = await kate.start()
        await live.until(lambda: f"taskflow.evt.kate.{hers}.started" in {message.subject for message in live.messages})
        assert all(message.subject.startswith("taskflow.evt.kate.") for message in live.messages)
    assert await kate.kinds(missed) == ["created", "started"]
    assert refused.said == []


async def test_the_client_does_its_work_with_an_agents_own_rights(stage: Guarded) -> None:
    refused = Refused()
    async with FlowClient.connect((await stage.agent("kate", refused=refused)).client, agent="kate") as flows:
        flow = await flows.start(controller_id="kate/client", goal="ask for nothing more")
        await flow.wait_manual("Ann?")
        waiting = asyncio.ensure_future(flow.resumed("20s"))
        await flow.resume({"yes": True}, door="api")
        assert (await waiting).payload == {"yes": True}
        assert [entry.kind async for entry in flow.history()][-1] == "resumed"
    assert refused.said == []
    options: Json = {"nkey_seed": str(stage.keys["kate"].seed), "inbox_prefix": "_INBOX.kate"}
    async with FlowClient.connect(stage.url, agent="kate", **options) as flows:
        with pytest.raises(Forbidden, match=r"may not use \$JS.API.CONSUMER.CREATE.TASKFLOW_EVT"):
            await anext(flows.events())
        flow = await flows.start(controller_id="kate/client", goal="be heard without rights on the stream")
        heard = []
        async for event in flow.events():
            heard.append((event.seq, event.kind, event.status))
            if event.kind == "started":
                await flow.advance({"n": 1})
                await flow.finish()
        assert heard == [(1, "created", "created"), (2, "started", "running"), (3, "state_updated", "running"), (4, "finished", "finished")]
    async with FlowClient.connect(stage.url, agent="ann", patience=3.0, **options) as flows:
        with pytest.raises(Forbidden, match=r"may not use taskflow.cmd.ann.start"):
            await flows.start(controller_id="ann/x", goal="be somebody else")
    with pytest.raises(Forbidden, match="inbox prefix"):
        async with FlowClient.connect(stage.url, agent="kate", nkey_seed=str(stage.keys["kate"].seed)):
            pass


async def test_an_agents_loop_needs_its_consumer_and_nothing_more(stage: Guarded) -> None:
    options: Json = {"nkey_seed": str(stage.keys["loop"].seed), "inbox_prefix": "_INBOX.loop"}
    loop = Loop(stage.url, agent="kate", name="triage", **options)
    done = asyncio.Event()

    @loop.on("created", controller="kate/loop")
    async def finish(flow: Flow, event: Event) -> None:
        await flow.finish({"seq": event.seq})
        done.set()

    with pytest.raises(Forbidden, match=r"may not use \$JS.API.CONSUMER.CREATE.TASKFLOW_EVT.triage"):
        await loop.run()
    await stage.make_loop()
    running = asyncio.ensure_future(loop.run())
    kate = await stage.agent("kate")
    flow_id = await kate.start(controller_id="kate/loop")
    await asyncio.wait_for(done.wait(), 30)
    assert (await kate.until(flow_id, "finished"))["state"] == {"seq": 1}
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


async def test_a_reader_reads_all_events_from_the_stream(stage: Guarded) -> None:
    refused = Refused()
    await stage.make_reader()
    reader, kate, ann = await stage.agent("reader", refused=refused), await stage.agent("kate"), await stage.agent("ann")
    awaited = {f"taskflow.evt.{agent.name}.{await agent.start()}.started" for agent in (kate, ann)}
    reading = await reader.js.pull_subscribe_bind("reader", stream="TASKFLOW_EVT")
    while awaited:
        for message in await reading.fetch(10, timeout=10):
            awaited.discard(message.subject)
            await message.ack_sync()
    assert refused.said == []


async def test_the_operator_sees_events_dead_letters_and_the_service(stage: Guarded) -> None:
    refused = Refused()
    operator, kate = await stage.agent("operator", refused=refused), await stage.agent("kate")
    async with operator.listening("taskflow.dlq.>") as dead, operator.listening("taskflow.evt.>") as events:
        await kate.publish("taskflow.cmd.kate.start", b"rubbish")
        await kate.start()
        await dead.count(1)
        await events.count(1)
    assert b"taskflow" in (await operator.client.request("$SRV.PING.taskflow", timeout=10)).data
    assert (await operator.js.stream_info("TASKFLOW_DLQ")).state.messages >= 1
    assert (await operator.js.get_msg("TASKFLOW_DLQ", 1)).data
    assert refused.said == []


async def test_the_worker_keeps_its_promises_through_kills_with_rights_that_change_nothing(stage: Guarded) -> None:
    kate = await stage.agent("kate")
    accepted: list[tuple[str, str]] = []
    for number in range(3):
        command = f"kill-{number}"
        await kate.cmd("start", {"controller_id": "kate/kill", "goal": "live", "flow_id": new_id()}, command)
        accepted.append(("kate", command))
        await stage.kill()
        await stage.start()
        assert (await kate.outcome(command, within=40.0))["ok"]
    assert await checks.violations(stage, await stage.agent("operator"), accepted=accepted) == []
    assert denied(stage) == []


def denied(stage: Stage) -> list[str]:
    """Return what the workers' logs say of missing permissions, but for the one that is told at the start and can be done without."""
    lines = [line for log in stage.logs() for line in log.read_text(encoding="utf-8").splitlines()]
    told = [line for line in lines if "permission" in line.lower() or "not_rewound" in line]
    return [line for line in told if "consumer.create.taskflow_in." not in line.lower()]
