"""Quotas of held replies on a real database (RELIABILITY 4, row 52): bounded, fair, and every reply with one outcome all the same."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest
from structlog.testing import capture_logs

from nats_taskflow.config import Config
from nats_taskflow.flow.lifecycle import FlowStatus
from nats_taskflow.flow.policy import Policy
from nats_taskflow.wire.reply_bindings import Binding
from tests.running import Running, an_input, running
from tests.service.acting import TOPIC, Inlet, dead_letters, external, started
from tests.serving import serving


async def adds_up(run: Running, taken: int) -> dict[str, int]:
    """I-16: the counters say what the rows say, whichever way a reply went; returns how many each tenant holds."""
    counts = {name: count for name, count in (await run.store.counts()).items() if count and not name.startswith(("flows.", "waits."))}
    rows = dict(await run.store._read("SELECT 'inbox.' || outcome, count(*) FROM inbox GROUP BY 1", ()))
    held = dict(await run.store._read("SELECT tenant, count(*) FROM held GROUP BY 1", ()))
    assert counts == rows | ({"held": sum(held.values())} if held else {})
    assert dict(await run.store._read("SELECT tenant, held FROM held_tenants", ())) == held
    topics = "SELECT tenant, topic, count(*) FROM held GROUP BY tenant, topic"
    assert list(await run.store._read("SELECT * FROM held_topics", ())) == list(await run.store._read(topics, ()))
    assert rows.get("inbox.held", 0) == sum(held.values())
    assert sum(rows.values()) == taken
    return held


@pytest.mark.parametrize("place", [":memory:", "file"])
async def test_a_flood_displaces_its_own_replies_and_nobody_elses(place: str, tmp_path: Path) -> None:
    path = place if place == ":memory:" else str(tmp_path / "t.db")
    async with running(path, policy=Policy(max_held_of_tenant=10)) as run:
        inlet = Inlet(run)
        await inlet.message("taskflow.reply.bob.early", {}, b"1")
        told = await asyncio.gather(*(inlet.reply({"n": n}, correlation_id=f"flood-{n}", event_id=f"e{n}") for n in range(500)))
        assert {one.name for one in told} == {"held"}
        assert await adds_up(run, 501) == {TOPIC: 10, "agent:bob": 1}
        letters = await dead_letters_of(run)
        assert [letter[3] for letter in letters] == [b'{"n":%d}' % n for n in range(490)]
        reason, stream, seq, _, message = letters[0]
        assert (reason, stream, seq) == ("expired", "TASKFLOW_IN", 2)
        assert "quota of 10" in message


KATES = Config(
    replies=(
        Binding("agent.ship.reply", owners=("kate",)),
        Binding("agent.bank.reply", owners=("kate",)),
        Binding("agent.route.*"),
        Binding("work.*", correlation="subject"),
    )
)


@pytest.mark.parametrize("flooded", ["agent.bank.reply", "agent.route.bank", "work.bank", "taskflow.reply.kate.flood", "taskflow.resume"])
@pytest.mark.parametrize("place", [":memory:", "file"])
async def test_a_flood_on_one_delegates_topic_displaces_nothing_of_another_ones(place: str, flooded: str, tmp_path: Path) -> None:
    """RELIABILITY 4, row 52: whatever the topics have in common, their owner or their binding."""
    path = place if place == ":memory:" else str(tmp_path / "t.db")
    early = ["agent.ship.reply", "agent.route.ship", *(() if flooded == "taskflow.reply.kate.flood" else ("taskflow.reply.kate",))]
    unknown = "00000000-0000-4000-8000-000000000001"
    async with serving(path, config=KATES, max_held_of_tenant=10) as served:
        for topic in early:
            for n in range(3):
                subject = f"{topic}.c{n}" if topic == "taskflow.reply.kate" else topic
                await served.client.publish(subject, b'{"correlation_id":"c%d","payload":%d}' % (n, n))
        for n in range(80):
            said = {"flow_id": unknown, "topic": "agent.bank.reply", "correlation_id": f"flood-{n}", "payload": n}
            await served.client.publish(flooded, msgspec.json.encode(said))
        await served.pump()
        for topic in early:
            for n in range(3):
                flow_id = await served.started()
                wait = {"kind": "external_event", "topic": topic, "correlation_id": f"c{n}"}
                await served.ask("wait", flow_id=flow_id, wait_condition=wait)
                assert (await served.flow(flow_id)).status is FlowStatus.RUNNING, (topic, n)


async def dead_letters_of(run: Running) -> list[tuple[str, str, int | None, bytes, str]]:
    found = await run.store.unpublished_dead_letters(0, 10_000)
    return [(letter.reason, letter.stream, letter.seq, letter.body, letter.message) for letter in found]


async def test_the_quota_of_all_is_paid_by_the_tenant_that_holds_most() -> None:
    async with running(policy=Policy(max_held=6)) as run:
        inlet = Inlet(run)
        for n in range(5):
            await inlet.reply(n, correlation_id=f"kate-{n}")
        for agent in ("bob", "eve", "mallory"):
            await inlet.message(f"taskflow.reply.{agent}.c", {}, b"1")
        assert await adds_up(run, 8) == {TOPIC: 3, "agent:bob": 1, "agent:eve": 1, "agent:mallory": 1}


async def test_a_displaced_reply_resumes_nobody_and_its_repeat_is_told_that_it_expired() -> None:
    async with running(policy=Policy(max_held_of_tenant=1)) as run:
        inlet = Inlet(run)
        await inlet.reply("old", correlation_id="old", event_id="e1")
        with capture_logs() as logs:
            await inlet.reply("new", correlation_id="new", event_id="e2")
        assert [(entry["event"], entry["reason"]) for entry in logs] == [("dead_lettered", "expired")]
        flow = await started(run)
        assert (await run.manager.set_waiting(flow.id, external("old"))).status is FlowStatus.WAITING
        again = await inlet.reply("old", correlation_id="old", event_id="e1")
        assert (again.name, again.result) == ("duplicate", b'{"ok":false,"outcome":"expired"}')
        assert await adds_up(run, 3) == {TOPIC: 1}


async def test_parking_and_displacing_within_one_batch_use_a_reply_once() -> None:
    """A reply that a flow took a moment ago cannot make room too, and one that made room cannot be taken."""
    async with running(policy=Policy(max_held_of_tenant=2)) as run:
        inlet = Inlet(run)
        for name in ("a", "b"):
            await inlet.reply(name, correlation_id=name, event_id=name)
        one, two = await started(run), await started(run)
        taking = asyncio.ensure_future(run.manager.set_waiting(one.id, external("a")))
        more = [asyncio.ensure_future(inlet.reply(name, correlation_id=name, event_id=name)) for name in ("c", "d")]
        between = asyncio.ensure_future(run.manager.create_managed(an_input()))  # commands and replies take turns: `d` before `late`
        late = asyncio.ensure_future(run.manager.set_waiting(two.id, external("b")))
        assert (await taking).state_json["resume_event"] == "a"
        await asyncio.gather(between, *more)
        assert (await late).status is FlowStatus.WAITING, "it made room for d"
        assert await adds_up(run, 4) == {TOPIC: 2}
        assert [letter.body for letter in await dead_letters(run)] == [b'"b"']


async def test_replies_that_expire_or_are_used_make_room_again() -> None:
    async with running(policy=Policy(max_held_of_tenant=2)) as run:
        inlet = Inlet(run)
        for name in ("a", "b"):
            await inlet.reply(name, correlation_id=name)
        run.clock.advance(hours=25)
        assert await run.engine.do(lambda transaction: transaction.expire_held(run.clock.us, 1)) == 1
        await inlet.reply("c", correlation_id="c")
        assert await adds_up(run, 3) == {TOPIC: 2}
        assert [letter.body for letter in await dead_letters(run)] == [b'"a"']


async def test_a_quota_that_was_lowered_is_met_though_more_is_held(tmp_path: Path) -> None:
    path = str(tmp_path / "t.db")
    async with running(path) as run:
        for n in range(20):
            await Inlet(run, stream=f"S{n}").reply(n, correlation_id=str(n))
    async with running(path, policy=Policy(max_held_of_tenant=5)) as run:
        inlet = Inlet(run)
        await asyncio.gather(*(inlet.reply(n, correlation_id=f"more-{n}") for n in range(30)))
        assert await adds_up(run, 50) == {TOPIC: 5}
