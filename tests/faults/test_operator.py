"""An operator deletes, changes, fills or forbids what the worker needs while it runs: it says so, goes on
by itself afterwards, and loses nothing.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sqlite3
import time
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import nkeys
import pytest

from nats_taskflow.bus.nats.server import EmbeddedServer
from tests.conftest import SEED
from tests.e2e import checks
from tests.e2e.commands import command
from tests.e2e.stage import DEAD_LETTERS, EVENTS, INBOUND, TOPIC, Agent, Json, Stage, encoded, in_order
from tests.eventually import eventually
from tests.faults.disturbing import side_by_side
from tests.faults.readiness import readiness, ready, unready
from tests.faults.report import Row
from tests.ports import kept_port
from tests.reloading import reload
from tests.tiers import Rotated

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(180)]
Record = Callable[[Row], None]

FLOWS = 20
SOON = 100_000_000
"""Nanoseconds: the shortest that a broker keeps messages."""


async def api(agent: Agent, verb: str, body: Json | None = None) -> Json:
    """Ask the JetStream API as the operator."""
    answer = await agent.client.request(f"$JS.API.{verb}", encoded(body) if body is not None else b"", timeout=5)
    decoded: Json = json.loads(answer.data)
    assert "error" not in decoded, decoded
    return decoded


async def change_stream(agent: Agent, name: str, **changes: Any) -> None:
    """Change a stream's settings."""
    config = (await api(agent, f"STREAM.INFO.{name}"))["config"]
    await api(agent, f"STREAM.UPDATE.{name}", {**config, **changes})


async def is_empty(agent: Agent, name: str) -> bool:
    """Tell whether a stream has no messages."""
    return bool((await api(agent, f"STREAM.INFO.{name}"))["state"]["messages"] == 0)


async def change_consumer(agent: Agent, consumer: str = "worker", **changes: Any) -> Json:
    """Change a consumer of the worker's; returns the configuration that it had."""
    config = (await api(agent, f"CONSUMER.INFO.{INBOUND}.{consumer}"))["config"]
    body = {"stream_name": INBOUND, "config": {**config, **changes}, "action": "update"}
    await api(agent, f"CONSUMER.CREATE.{INBOUND}.{consumer}", body)
    assert isinstance(config, dict)
    return config


async def flows_of(agent: Agent, name: str, count: int = FLOWS) -> list[str]:
    """Start flows over `api`."""
    return await in_order([partial(agent.start, goal=f"{name}-{n}") for n in range(count)])


async def all_published(stage: Stage, agent: Agent, flows: list[str], *, within: float = 20.0) -> None:
    """Return once both events of each started flow lie in the stream."""

    async def there() -> bool:
        found = {sent.json["id"] for sent in await stage.stream(EVENTS, agent)}
        return {f"{flow}:{seq}" for flow in flows for seq in (1, 2)} <= found

    await eventually(there, within=within)


async def judge(stage: Stage, agent: Agent, *, unpublished: set[str] = frozenset()) -> list[str]:  # type: ignore[assignment]  # read only
    """Stop the worker and check everything but what the operator threw away from the event stream."""
    bad = await checks.violations(stage, agent, clean_logs=False)
    return [line for line in bad if not any(flow in line for flow in unpublished)]


@pytest.mark.scenario("event-stream-deleted")
async def test_a_deleted_event_stream_is_made_again_and_what_is_committed_meanwhile_comes_out(
    stage: Stage, kate: Agent, record: Record
) -> None:
    before = await flows_of(kate, "before")
    await all_published(stage, kate, before)
    await api(kate, f"STREAM.DELETE.{EVENTS}")
    began = time.monotonic()
    during = await flows_of(kate, "during")

    async def exists() -> bool:
        return EVENTS in (await api(kate, "STREAM.NAMES"))["streams"]

    await eventually(exists, within=10)
    took = time.monotonic() - began
    await all_published(stage, kate, during)
    await ready(stage)
    # What the operator deleted with the stream is gone from it, and still in the journal.
    assert await judge(stage, kate, unpublished=set(before)) == []
    record(Row(scenario="event-stream-deleted", seed=SEED, faults=1, acknowledged=2 * FLOWS, back=[took]))


@pytest.mark.scenario("dead-letter-stream-deleted")
async def test_a_deleted_dead_letter_stream_is_made_again(stage: Stage, kate: Agent) -> None:
    await api(kate, f"STREAM.DELETE.{DEAD_LETTERS}")
    await kate.publish("taskflow.cmd.kate.start", b"{", {"Nats-Msg-Id": "bad"})

    async def buried() -> bool:
        return DEAD_LETTERS in (await api(kate, "STREAM.NAMES"))["streams"] and len(await stage.dead(kate)) == 1

    await eventually(buried, within=20)
    assert await judge(stage, kate) == []


@pytest.mark.full
@pytest.mark.scenario("event-stream-full")
async def test_a_full_event_stream_makes_the_worker_unready_and_is_asked_once_a_second_until_there_is_room(
    stage: Stage, kate: Agent, record: Record
) -> None:
    first = await kate.start()
    await all_published(stage, kate, [first])
    await change_stream(kate, EVENTS, discard="new", max_bytes=2000)
    flows = await flows_of(kate, "more", 200)
    took = await unready(stage, "events failed", "maximum bytes")
    before = attempts(stage)
    await passing(4)
    asked = attempts(stage) - before
    assert asked <= 14, f"the broker was asked {asked} times in 4 s"
    began = time.monotonic()
    await change_stream(kate, EVENTS, max_bytes=-1, discard="old")
    await all_published(stage, kate, flows)
    back = time.monotonic() - began
    await ready(stage)
    assert await judge(stage, kate) == []
    note = f"said after {took:.1f} s, asked {asked} times in 4 s"
    record(Row(scenario="event-stream-full", seed=SEED, faults=1, acknowledged=201, back=[back], note=note))


async def passing(seconds: float) -> None:
    """Let time pass: what is counted afterwards is what happened in it."""
    await asyncio.wait({asyncio.get_running_loop().create_future()}, timeout=seconds)


def attempts(stage: Stage) -> int:
    """Count the messages that clients have sent to the server so far; every look at streams and consumer is four."""
    with urllib.request.urlopen(f"{stage.server.monitor_url}/varz", timeout=5) as page:  # noqa: S310  our own server
        return int(json.load(page)["in_msgs"])


@pytest.mark.full
@pytest.mark.scenario("max-deliver-changed")
async def test_a_consumer_that_would_give_up_on_messages_makes_the_worker_unready_until_it_is_changed_back(
    stage: Stage, kate: Agent, record: Record
) -> None:
    await change_consumer(kate, max_deliver=3)
    took = await unready(stage, "max_deliver is 3, it must be -1")
    flow = await kate.parked("c")  # it goes on as well as it can meanwhile
    await kate.reply(TOPIC, "c", 1)
    await kate.until(flow, "running")
    await change_consumer(kate, max_deliver=-1)
    back = await ready(stage)
    assert await judge(stage, kate) == []
    record(Row(scenario="max-deliver-changed", seed=SEED, faults=1, acknowledged=3, back=[back], note=f"said after {took:.1f} s"))


@pytest.mark.full
@pytest.mark.scenario("bodies-left-out")
async def test_nothing_is_taken_from_a_consumer_that_leaves_bodies_out_until_it_is_changed_back(
    stage: Stage, kate: Agent, record: Record
) -> None:
    await change_consumer(kate, headers_only=True)
    took = await unready(stage, "streams failed", "nothing is taken")
    await kate.cmd("start", {"controller_id": "k", "goal": "g"}, "whole")
    assert (await kate.api("outcome", {"command_id": "whole"}))["error"]["code"] == "no_outcome"
    await change_consumer(kate, headers_only=False)
    back = await ready(stage)
    assert (await kate.outcome("whole"))["ok"]
    assert await judge(stage, kate) == []
    record(Row(scenario="bodies-left-out", seed=SEED, faults=1, acknowledged=1, back=[back], note=f"said after {took:.1f} s"))


@pytest.mark.full
@pytest.mark.scenario("filter-narrowed")
async def test_what_a_narrowed_filter_has_passed_over_is_delivered_once_it_is_wide_again(stage: Stage, kate: Agent, record: Record) -> None:
    before = await change_consumer(kate, "replies", filter_subjects=["taskflow.reply.*.*"])
    flow = await kate.parked("c")
    await kate.reply(TOPIC, "c", 1)
    await kate.publish("taskflow.reply.kate.behind", b"1")
    took = await unready(stage, "streams failed", "filter_subjects")
    await change_consumer(kate, "replies", filter_subjects=before["filter_subjects"])
    await kate.until(flow, "running")
    back = await ready(stage)
    assert await judge(stage, kate) == []
    record(Row(scenario="filter-narrowed", seed=SEED, faults=1, acknowledged=4, back=[back], note=f"said after {took:.1f} s"))


@pytest.mark.scenario("consumer-paused")
async def test_a_paused_consumer_is_said_everywhere_and_a_deadline_waits_for_what_it_holds_back(
    stage: Stage, kate: Agent, record: Record
) -> None:
    flow = await kate.parked("c", timeout="6s")
    until = (datetime.now(UTC) + timedelta(days=30)).isoformat()
    await api(kate, f"CONSUMER.PAUSE.{INBOUND}.replies", {"pause_until": until})
    await kate.reply(TOPIC, "c", 1)
    took = await unready(stage, "streams failed", "paused")
    assert "TASKFLOW CRITICAL" in (await command(stage, "check", code=2)).out
    told = json.loads((await command(stage, "doctor", "-o", "json", code=1)).out)["checks"]
    assert {"ready", "consumer replies"} <= {check["name"] for check in told if check["level"] == "fail" and "paused" in check["text"]}
    assert "stream_breaks_a_promise" in stage.logs()[-1].read_text()
    due = (await kate.flow(flow))["wait"]["deadline"]
    await eventually(lambda: datetime.now(UTC) > datetime.fromisoformat(due) + timedelta(seconds=1))
    assert (await kate.flow(flow))["status"] == "waiting"
    await api(kate, f"CONSUMER.PAUSE.{INBOUND}.replies", {})
    assert (await kate.until(flow, "running"))["state"]["resume_event"] == 1
    back = await ready(stage)
    assert await judge(stage, kate) == []
    record(Row(scenario="consumer-paused", seed=SEED, faults=1, acknowledged=3, back=[back], note=f"said after {took:.1f} s"))


@pytest.mark.scenario("another-database")
async def test_a_worker_on_another_database_is_refused_until_it_adopts_the_consumer_and_then_the_first_one_ends(
    stage: Stage, kate: Agent, tmp_path: Path
) -> None:
    other = {"TASKFLOW_STORE_PATH": str(tmp_path / "other.db")}
    flow = await kate.start()
    ended = await stage.refused(**other)
    assert ended.code == 75, ended.stderr
    assert str(stage.path) in ended.stderr
    assert f"pid {stage.pid}" in ended.stderr
    assert "--adopt" in ended.stderr
    assert str(tmp_path / "other.db") in ended.stderr, "where this one's database would be is said at the start"
    with closing(sqlite3.connect(stage.path)) as database, closing(sqlite3.connect(tmp_path / "copy.db")) as copy:
        database.backup(copy)
    ended = await stage.refused(TASKFLOW_STORE_PATH=str(tmp_path / "copy.db"))
    assert ended.code == 75, ended.stderr
    assert f"pid {stage.pid}" in ended.stderr
    assert "copy" in ended.stderr
    first, stage.program = stage.process, (*stage.program, "--adopt")
    adopting, _ = await stage.spawn(**other)
    try:
        assert adopting.stdout is not None
        assert json.loads(await asyncio.wait_for(adopting.stdout.readline(), 30))["event"] == "ready"
        assert await asyncio.wait_for(first.wait(), 15) == 75
        assert (await kate.api("status", {"flow_id": flow}))["error"]["code"] == "not_found"
    finally:
        adopting.terminate()
        await adopting.communicate()


@pytest.mark.full
@pytest.mark.scenario("inbound-settings-changed")
async def test_an_inbound_stream_that_would_throw_messages_away_makes_the_worker_unready(stage: Stage, kate: Agent) -> None:
    await change_stream(kate, INBOUND, discard="old")
    await unready(stage, "stream TASKFLOW_IN: discard is old, it must be new")
    await change_stream(kate, INBOUND, discard="new")
    await ready(stage)


@pytest.mark.scenario("inbound-stream-deleted")
async def test_a_deleted_inbound_stream_is_made_again_and_what_was_decided_stays(stage: Stage, kate: Agent, record: Record) -> None:
    flow = await kate.parked("c")
    await kate.cmd("start", {"controller_id": "k", "goal": "g"}, "first")
    assert (await kate.outcome("first"))["ok"]
    await api(kate, f"STREAM.DELETE.{INBOUND}")
    began = time.monotonic()
    await kate.insist(TOPIC, encoded({"correlation_id": "c", "payload": 1}), {"Nats-Msg-Id": "r"})
    await kate.until(flow, "running")
    back = time.monotonic() - began
    await kate.cmd("start", {"controller_id": "k", "goal": "g"}, "first")  # the new stream does not know it
    await kate.cmd("start", {"controller_id": "k", "goal": "g"}, "second")
    assert (await kate.outcome("second"))["ok"]
    await ready(stage)
    assert await stage.stop() == 0
    with stage.database() as database:
        assert checks.outcomes(database) == {"applied": 4, "resumed": 1, "duplicate": 1}
    record(Row(scenario="inbound-stream-deleted", seed=SEED, faults=1, acknowledged=6, back=[back]))


@pytest.mark.scenario("purge")
async def test_a_purge_is_refused_and_what_has_gone_out_may_grow_old_at_once(stage: Stage, kate: Agent) -> None:
    before = await flows_of(kate, "before", 5)
    await all_published(stage, kate, before)
    for name in (INBOUND, EVENTS):
        refused = json.loads((await kate.client.request(f"$JS.API.STREAM.PURGE.{name}", b"", timeout=5)).data)
        assert "error" in refused, refused
    had = (await api(kate, f"STREAM.INFO.{EVENTS}"))["config"]
    await change_stream(kate, EVENTS, max_age=SOON, duplicate_window=SOON)
    await eventually(lambda: is_empty(kate, EVENTS), within=20)
    await change_stream(kate, EVENTS, max_age=had["max_age"], duplicate_window=had["duplicate_window"])
    after = await flows_of(kate, "after", 5)
    await all_published(stage, kate, after)
    assert (await readiness(stage))[0] == 200
    assert await judge(stage, kate, unpublished=set(before)) == []


# --- permissions and credentials -----------------------------------------------------------------------------------------------

EVERYTHING = '{ publish: ">", subscribe: ">" }'


def users(permissions: str = EVERYTHING) -> str:
    """Write the server's users: the worker with these permissions, and kate, who may do everything."""
    return f"""authorization {{ users: [
        {{ user: worker, password: w, permissions: {permissions} }}
        {{ user: kate, password: k }} ] }}"""


@asynccontextmanager
async def guarded(folder: Path) -> AsyncIterator[Stage]:
    """Give a stage whose broker knows two users."""
    server = EmbeddedServer(folder / "nats", kept_port(), extra_config=users())
    async with Stage(folder, server=server, settings={"TASKFLOW_NATS_USER": "worker", "TASKFLOW_NATS_PASSWORD": "w"}) as stage:
        yield stage


FORBIDDEN = {
    "events": ('{ publish: { deny: "taskflow.evt.>" }, subscribe: ">" }', "may not publish on taskflow.evt."),
    "pull": ('{ publish: { deny: "$JS.API.CONSUMER.MSG.NEXT.>" }, subscribe: ">" }', "may not publish on $JS.API.CONSUMER.MSG.NEXT"),
    "inbox": ('{ publish: ">", subscribe: { deny: "_INBOX.>" } }', "may not subscribe to _inbox."),
    "acks": ('{ publish: { deny: "$JS.ACK.>" }, subscribe: ">" }', "may not publish on $JS.ACK.TASKFLOW_IN.worker.>"),
    "api": ('{ publish: ">", subscribe: { deny: "taskflow.api.>" } }', "may not subscribe to taskflow.api."),
}


@pytest.mark.scenario("permission-revoked")
async def test_a_revoked_permission_is_said_is_not_hammered_at_and_works_again_when_it_is_back(
    tmp_path: Path, rotated: Rotated, record: Record
) -> None:
    """Side by side: most of the time it is waited for somebody to notice."""

    async def case(folder: Path, what: str) -> Row:
        async with guarded(folder) as stage:
            return await revoked_and_back(stage, what)

    for row in (await side_by_side(tmp_path, rotated([*FORBIDDEN], 4), case)).values():
        record(row)


async def revoked_and_back(stage: Stage, what: str) -> Row:
    """Take a permission away, count what is said and tried, and give it back."""
    kate = await stage.agent("kate", user="kate", password="k")
    await kate.parked("c-0")
    permissions, words = FORBIDDEN[what]
    await reload(stage.server, users(permissions))
    numbers = range(1, 31)
    for n in numbers:
        await kate.cmd("start", {"controller_id": "k", "goal": "g"}, f"start-{n}")
    # A pull request that is under way goes on delivering: nobody knows that the next one is forbidden before it is sent.
    took = await unready(stage, words, within=45 if what == "pull" else 15)
    await passing(2)  # what was under way comes to rest
    lines, sent = len(stage.logs()[-1].read_text().splitlines()), attempts(stage)
    await passing(5)
    lines = len(stage.logs()[-1].read_text().splitlines()) - lines
    sent = attempts(stage) - sent
    assert lines <= 5, f"{lines} lines in the log in 5 s"
    assert sent <= 25, f"{sent} messages in 5 s"  # with the looks at streams and consumer
    await reload(stage.server, users())
    began = time.monotonic()
    await ready(stage)  # before anybody asks: a subscription that was taken away comes back within two seconds
    outcomes = await in_order([partial(kate.outcome, f"start-{n}", within=30) for n in numbers])
    assert all(outcome["ok"] for outcome in outcomes)
    back = time.monotonic() - began
    assert await judge(stage, kate) == []
    note = f"{what}: said after {took:.1f} s, {lines} log lines and {sent} messages in 5 s"
    return Row(scenario="permission-revoked", seed=SEED, faults=1, acknowledged=len(numbers) + 1, back=[back], note=note)


def nkey(folder: Path) -> str:
    """Write a new NKey into the worker's file and return its public part."""
    seed = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)
    (folder / "worker.nk").write_bytes(seed)
    (folder / "worker.nk").chmod(0o600)
    public: str = nkeys.from_seed(bytearray(seed)).public_key.decode()
    return public


@pytest.mark.full
@pytest.mark.scenario("credentials-rotated")
async def test_a_key_that_is_replaced_is_used_at_the_next_connection_without_a_restart(
    tmp_path: Path, record: Record, dice: random.Random
) -> None:
    def config(public: str) -> str:
        return f"authorization {{ users: [ {{ nkey: {public} }}, {{ user: kate, password: k }} ] }}"

    server = EmbeddedServer(tmp_path / "nats", kept_port(), extra_config=config(nkey(tmp_path)))
    async with Stage(tmp_path, server=server, settings={"TASKFLOW_NATS_NKEY": str(tmp_path / "worker.nk")}) as stage:
        kate = await stage.agent("kate", user="kate", password="k")
        flow = await kate.parked("c")
        server.extra_config = config(nkey(tmp_path))
        half = (tmp_path / "worker.nk").read_bytes()
        (tmp_path / "worker.nk").write_bytes(half[:20])  # whoever writes it is not done yet
        await server.restart(kill=True)
        await eventually(lambda: kate.client.is_connected, within=10)
        await unready(stage, "nats failed")
        (tmp_path / "worker.nk").write_bytes(half)
        began = time.monotonic()
        await ready(stage)
        await kate.reply(TOPIC, "c", 1)
        await kate.until(flow, "running", within=10)
        back = time.monotonic() - began
        assert await judge(stage, kate) == []
    record(Row(scenario="credentials-rotated", seed=SEED, faults=1, acknowledged=3, back=[back]))
