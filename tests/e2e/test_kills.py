"""Nothing is lost and nothing happens twice, whoever is killed, refused or gone."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import shutil
import socket
import sqlite3
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from nats.errors import NoRespondersError

from nats_taskflow.bus.nats.server import EmbeddedServer
from tests.e2e import checks
from tests.e2e.stage import CONSUMERS, TOPIC, Agent, Heard, Json, Stage, encoded, event, in_order, new_id
from tests.eventually import eventually
from tests.ports import kept_port

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(180)]

SEED = int(os.environ.get("TASKFLOW_SEED", "20261121"))
FLOWS = 1000
AUTH = "authorization { user: worker, password: right }"
Act = Callable[[], Awaitable[Any]]
Figure = Callable[[str], None]


class Play(msgspec.Struct):
    """What is published in what order, and what must come of it."""

    acts: list[Act]
    early: set[str]
    reaching: int
    dropped: int


def a_play(kate: Agent, dice: random.Random) -> Play:
    """Write the play of 1,000 flows: each is started, parked and answered; 10 % are answered before they park, 10 % twice."""
    flows = [new_id() for _ in range(FLOWS)]
    early, twice = set(dice.sample(flows, FLOWS // 10)), set(dice.sample(flows, FLOWS // 10))
    timed: list[tuple[float, Act]] = []
    reaching = dropped = 0
    for number, flow_id in enumerate(flows):
        corr = f"corr-{number}"
        start = dice.random()
        park = start + dice.random()
        start_body: Json = {"controller_id": "kate/play", "goal": "survive", "flow_id": flow_id}
        wait_body: Json = {"flow_id": flow_id, "wait_condition": event(corr)}
        timed.append((start, partial(kate.cmd, "start", start_body, f"start-{number}")))
        timed.append((park, partial(kate.cmd, "wait", wait_body, f"wait-{number}")))
        at = park * dice.random() if flow_id in early else park + dice.random()
        ways = _ways(number, dice) if flow_id in twice else [({"Nats-Msg-Id": f"reply-{number}"}, {})]
        for headers, more in ways:
            reply = encoded({"correlation_id": corr, "payload": {"n": number}, **more})
            timed.append((at, partial(kate.publish, TOPIC, reply, headers)))
            at += dice.random()
        reaches = 1 if "Nats-Msg-Id" in ways[-1][0] else len(ways)
        reaching, dropped = reaching + reaches, dropped + len(ways) - reaches
    timed.sort(key=lambda act: act[0])
    return Play([act for _, act in timed], early, reaching, dropped)


def _ways(number: int, dice: random.Random) -> list[tuple[dict[str, str], Json]]:
    """Say one event twice: the broker drops the second, or the worker has to."""
    name = f"reply-{number}"
    header: tuple[dict[str, str], Json] = ({"Nats-Msg-Id": name}, {})
    body: tuple[dict[str, str], Json] = ({}, {"event_id": name})
    return dice.choice(([header, header], [body, body], [header, body]))


@pytest.mark.full
async def test_a_thousand_flows_resume_exactly_once_while_the_worker_is_killed_five_times(
    stage: Stage, kate: Agent, figure: Figure
) -> None:
    dice = random.Random(SEED)
    play = a_play(kate, dice)
    kills = sorted(dice.sample(range(FLOWS // 10, 4 * FLOWS - FLOWS // 10), 5))
    async with kate.listening("taskflow.evt.>") as heard:
        began = time.monotonic()
        playing = asyncio.create_task(in_order(play.acts))
        for moment in kills:
            await heard.different(moment)
            await stage.kill()
            await stage.start()
        stored = await playing
        await heard.different(4 * FLOWS)
        took = time.monotonic() - began
    assert sum(bool(answer.duplicate) for answer in stored) == play.dropped
    accepted = [("kate", f"{verb}-{n}") for n in range(FLOWS) for verb in ("start", "wait")]
    assert await checks.violations(stage, kate, accepted=accepted) == []
    with stage.database() as database:
        journal, outcomes = checks.journals(database), checks.outcomes(database)
        assert len(journal) == FLOWS
        assert {tuple(str(entry.kind) for entry in entries) for entries in journal.values()} == {
            ("created", "started", "waiting", "resumed")
        }
        assert all(entries[2].at_us == entries[3].at_us for flow_id, entries in journal.items() if flow_id in play.early)
        assert outcomes == {"applied": 2 * FLOWS, "resumed": FLOWS, "duplicate": play.reaching - FLOWS}
        assert outcomes.total() == (await kate.js.stream_info("TASKFLOW_IN")).state.messages
        epoch = database.execute("SELECT value FROM meta WHERE name = 'epoch'").fetchone()[0]
        assert epoch == 6
    figure(f"seed {SEED}: killed after {kills} of {4 * FLOWS} events, all resumed once, {dict(outcomes)}, {took:.1f} s")


@pytest.mark.full
async def test_messages_that_were_only_in_hand_at_many_kills_are_no_poison(stage: Stage, kate: Agent) -> None:
    count = 1500
    await stage.stop()
    await in_order([partial(kate.cmd, "start", {"controller_id": "k", "goal": "g"}, f"s-{n}") for n in range(count)])

    async def in_hand() -> bool:
        delivered = (await kate.consumer()).delivered
        return delivered is not None and delivered.stream_seq == count

    for _ in range(7):
        await stage.start()
        await eventually(in_hand)
        await stage.kill()
    await stage.start()
    await eventually(partial(settled_all, kate, count), within=60)
    await stage.stop()
    with stage.database() as database:
        found = checks.outcomes(database)
    # The first in line is begun by each run: it alone may have been at work at five of the kills.
    assert found["dead"] <= 1
    assert found == Counter({"applied": count - found["dead"], "dead": found["dead"]})


@pytest.mark.full
async def test_nothing_is_lost_when_the_broker_is_killed_under_load_and_the_pull_resumes_quickly(
    stage: Stage, kate: Agent, figure: Figure
) -> None:
    dice = random.Random(SEED)
    count = 1000
    flows = await in_order([partial(kate.parked, f"corr-{n}") for n in range(count)])
    probes = [await kate.parked(f"corr-{count + n}") for n in range(3)]
    order = dice.sample(range(count), count)
    taken, published = [], []
    async with kate.listening("taskflow.evt.*.*.resumed") as heard:
        replying = asyncio.create_task(in_order([partial(answered, kate, n) for n in order], at_once=20))
        for number, probe in enumerate(probes):
            await heard.different(count // 10 + number * count // 4)
            await stage.server.restart(kill=True)
            up = time.time()
            await answered(kate, count + number)
            said = await the_event_of(heard, probe)
            taken.append(happened(said) - up)
            published.append(time.time() - up)
        await replying
        await heard.different(count + len(probes))
    await in_order([partial(kate.until, flow, "running") for flow in [*flows, *probes]])
    figure(f"broker killed: a reply after its restart resumed a flow {', '.join(f'{f:.2f} s' for f in taken)} after it was up")
    figure(f"broker killed: the event of that was out {', '.join(f'{f:.2f} s' for f in published)} after it was up")
    assert max(taken) <= 10
    assert max(published) <= 15
    assert await checks.violations(stage, kate) == []
    with stage.database() as database:
        assert checks.outcomes(database)["resumed"] == count + len(probes)


@pytest.mark.full
async def test_a_worker_killed_while_it_starts_starts_again(stage: Stage, kate: Agent) -> None:
    flow_id = await kate.parked("c-1")
    began = time.monotonic()
    await stage.stop()
    await stage.start()
    usual = time.monotonic() - began
    await stage.kill()
    for part in range(1, 11):
        process, _ = await stage.spawn()
        try:  # the point is to kill it after this time, wherever it has come
            await asyncio.wait_for(process.wait(), usual * part / 10)
        except TimeoutError:
            process.kill()
        await process.communicate()
    await kate.reply(TOPIC, "c-1", 1)
    await stage.start()
    await kate.until(flow_id, "running")
    assert await checks.violations(stage, kate) == []


async def test_a_second_worker_on_the_same_database_ends_with_75_and_disturbs_nobody(stage: Stage, kate: Agent, figure: Figure) -> None:
    flow_id = await kate.parked("c-1")
    second = await stage.refused()
    assert second.code == 75, second.stderr
    assert f"pid {stage.pid}" in told(second.stderr)
    assert second.seconds < 15
    figure(f"the second worker ended after {second.seconds:.2f} s")
    await kate.reply(TOPIC, "c-1", 1)
    await kate.until(flow_id, "running")
    await stage.kill()
    await stage.start()
    assert (await kate.flow(flow_id))["status"] == "running"


async def test_sigterm_under_load_exits_0_and_the_next_worker_goes_on(stage: Stage, kate: Agent) -> None:
    flow_id = await kate.start()
    commands = [partial(kate.cmd, "advance", {"flow_id": flow_id, "patch": {f"k{n % 50}": n}}, f"n-{n}") for n in range(3000)]
    async with kate.listening("taskflow.evt.*.*.state_updated") as heard:
        flood = asyncio.create_task(in_order(commands))
        for moment in (300, 900):
            await heard.different(moment)
            assert await stage.stop() == 0
            with stage.database() as database:
                assert checks.outbox_is_drained(database) == [], "what is committed is published before the end"
            await stage.start()
        await flood
        await heard.different(3000)
    assert await checks.violations(stage, kate, accepted=[("kate", f"n-{n}") for n in range(3000)]) == []


async def test_every_request_is_answered_across_an_orderly_restart_or_told_that_nobody_is_there(stage: Stage, kate: Agent) -> None:
    flow_id = await kate.start()
    async with kate.listening("taskflow.evt.>") as heard:
        flood = asyncio.create_task(in_order([partial(repeated, kate, flow_id, n) for n in range(1000)], at_once=50))
        for moment in (200, 500):
            await heard.different(moment)
            assert await stage.stop() == 0
            await stage.start()
        answers = await flood
    assert all(answer["ok"] for answer in answers)
    assert (await kate.flow(flow_id))["revision"] == 1001
    assert await checks.violations(stage, kate, accepted=[("kate", f"r-{n}") for n in range(1000)]) == []


async def test_sigterm_while_the_broker_is_down_exits_0_and_loses_nothing(stage: Stage, kate: Agent, figure: Figure) -> None:
    flow_id = await kate.start()
    assert (await kate.api("wait", {"flow_id": flow_id, "wait_condition": {"kind": "timer", "after": "300ms"}}))["ok"]
    await stage.server.kill()
    began = time.monotonic()
    await eventually(lambda: "bus.disconnected" in stage.logs()[-1].read_text(encoding="utf-8"))
    deadline = time.monotonic() + 0.5
    await eventually(lambda: time.monotonic() > deadline)  # the timer fires while there is nobody to tell
    assert await stage.stop(within=15) == 0
    figure(f"stopped {time.monotonic() - began:.1f} s after the broker was killed")
    with stage.database() as database:
        assert [str(entry.kind) for entry in checks.journals(database)[flow_id]][-1] == "resumed"
    await stage.server.start()
    await stage.start()

    async def published() -> bool:
        return len(await stage.events(kate, flow_id)) == 4

    await eventually(published, within=10)
    assert await checks.violations(stage, kate) == []


async def test_a_long_outage_of_the_broker_leaves_the_worker_alive_but_not_ready(stage: Stage, kate: Agent) -> None:
    assert await fetched(f"{stage.ready['http']}/readyz") == 200
    await stage.server.kill()

    async def not_ready() -> bool:
        return await fetched(f"{stage.ready['http']}/readyz") == 503

    await eventually(not_ready)
    assert await fetched(f"{stage.ready['http']}/livez") == 200
    await stage.server.start()

    async def ready() -> bool:
        return await fetched(f"{stage.ready['http']}/readyz") == 200

    await eventually(ready, within=10)
    flow_id = await kate.parked("c-1")
    await kate.reply(TOPIC, "c-1", 1)
    await kate.until(flow_id, "running")


async def test_an_unreachable_broker_at_the_start_ends_with_69_and_a_clear_line(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    with closed_port() as port:
        ended = await stage.refused(TASKFLOW_NATS_URL=f"nats://127.0.0.1:{port}", TASKFLOW_NATS_CONNECT_TIMEOUT="1s")
    assert ended.code == 69
    assert "cannot be reached within 1 s" in told(ended.stderr)
    assert str(port) in told(ended.stderr)
    assert ended.seconds < 15


async def test_a_wrong_password_at_the_start_ends_with_69_quickly(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path / "nats", kept_port(), extra_config=AUTH)
    stage = Stage(tmp_path, server=server, settings={"TASKFLOW_NATS_USER": "worker", "TASKFLOW_NATS_PASSWORD": "right"})
    async with stage:
        await stage.stop()
        for wrong in ({"TASKFLOW_NATS_PASSWORD": "s3cret-wrong"}, {"TASKFLOW_NATS_USER": "", "TASKFLOW_NATS_PASSWORD": ""}):
            ended = await stage.refused(**wrong)
            assert ended.code == 69, ended.stderr
            assert "refuses the credentials" in told(ended.stderr)
            assert ended.seconds < 15
            assert "s3cret" not in ended.stderr
        await stage.start()


def foreign(path: Path) -> None:
    """Make a database of another program."""
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE notes (text TEXT)")
    database.close()


def no_database(path: Path) -> None:
    """Make a file that is no database."""
    path.write_bytes(b"these are not the bytes you are looking for " * 200)


def newer(path: Path) -> None:
    """Raise the schema's version as a later program would."""
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 99")
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()


def torn(path: Path) -> None:
    """Overwrite pages in the middle of the file."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        for at in range(4096 * 2, size, 4096):
            file.seek(at)
            file.write(b"\xde\xad\xbe\xef" * 64)


@pytest.mark.parametrize(
    "spoil, why", [(foreign, "another program"), (no_database, "not an SQLite database")], ids=["foreign", "no_database"]
)
async def test_a_file_of_somebody_else_is_refused_untouched(tmp_path: Path, spoil: Callable[[Path], None], why: str) -> None:
    stage = Stage(tmp_path)
    await stage.server.start()
    try:
        spoil(stage.path)
        before = digests(tmp_path)
        ended = await stage.refused()
        assert ended.code == 78, ended.stderr
        assert why in told(ended.stderr)
        assert "store.path" in told(ended.stderr)
        assert digests(tmp_path) == before
    finally:
        await stage.server.stop()


@pytest.mark.parametrize("killed", [False, True], ids=["stopped", "killed"])
@pytest.mark.parametrize("spoil, why", [(newer, "knows up to"), (torn, "damaged")], ids=["newer", "torn"])
async def test_a_newer_or_damaged_database_is_refused_untouched(
    stage: Stage, kate: Agent, spoil: Callable[[Path], None], why: str, *, killed: bool
) -> None:
    await in_order([partial(kate.parked, f"c-{n}") for n in range(50)])
    await stage.stop()
    if killed:
        await stage.start()
        await kate.parked("c-last")
        await stage.kill()
    spoil(stage.path)
    before = digests(stage.folder)
    ended = await stage.refused()
    assert ended.code == 78, ended.stderr
    assert why in told(ended.stderr)
    assert digests(stage.folder) == before


async def test_a_stream_with_a_setting_that_breaks_a_promise_is_refused_by_name(stage: Stage, kate: Agent) -> None:
    await stage.stop()
    config = json.loads((await kate.client.request("$JS.API.STREAM.INFO.TASKFLOW_IN", b"", timeout=5)).data)["config"]
    changed = json.loads(
        (await kate.client.request("$JS.API.STREAM.UPDATE.TASKFLOW_IN", encoded({**config, "discard": "old"}), timeout=5)).data
    )
    assert "error" not in changed, changed
    ended = await stage.refused()
    assert ended.code == 78
    assert "stream TASKFLOW_IN: discard is old, it must be new" in told(ended.stderr)
    await kate.client.request("$JS.API.STREAM.UPDATE.TASKFLOW_IN", encoded(config), timeout=5)
    await stage.start()


async def test_a_consumer_that_is_deleted_live_comes_back_and_nothing_happens_twice(stage: Stage, kate: Agent, figure: Figure) -> None:
    flows = await in_order([partial(kate.parked, f"c-{n}") for n in range(20)])
    for number in range(10):
        await kate.reply(TOPIC, f"c-{number}", number)
    await in_order([partial(kate.until, flow, "running") for flow in flows[:10]])
    for consumer in CONSUMERS:
        await kate.js.delete_consumer("TASKFLOW_IN", consumer)
    began = time.monotonic()
    for number in range(10, 20):
        await kate.reply(TOPIC, f"c-{number}", number)
    await in_order([partial(kate.until, flow, "running", within=20) for flow in flows])
    figure(f"all resumed {time.monotonic() - began:.2f} s after the consumer was deleted")
    assert await checks.violations(stage, kate) == []
    with stage.database() as database:
        assert checks.outcomes(database) == {"applied": 40, "resumed": 20}


async def test_a_database_that_is_put_back_from_a_copy_reads_the_backlog_again(stage: Stage, kate: Agent) -> None:
    await kate.parked("c-1")
    await stage.stop()
    copy = stage.path.with_suffix(".copy")
    shutil.copy(stage.path, copy)
    await stage.start()
    flow_id = await kate.parked("c-2")
    await kate.cmd("start", {"controller_id": "k", "goal": "g", "flow_id": new_id()}, "after-the-copy")
    assert (await kate.outcome("after-the-copy"))["ok"]
    await stage.kill()
    for suffix in ("-wal", "-shm"):
        stage.path.with_name(stage.path.name + suffix).unlink(missing_ok=True)
    shutil.copy(copy, stage.path)
    await stage.start()
    assert (await kate.api("status", {"flow_id": flow_id}))["error"]["code"] == "not_found"
    assert (await kate.api("list_mine"))["ok"]


async def settled_all(agent: Agent, seq: int) -> bool:
    """Tell whether the worker has settled everything up to this message."""
    return await agent.settled_up_to() >= seq


async def answered(agent: Agent, number: int) -> None:
    """Publish a reply until the broker has it."""
    body = encoded({"correlation_id": f"corr-{number}", "payload": number})
    await agent.insist(TOPIC, body, {"Nats-Msg-Id": f"reply-{number}"})


async def repeated(agent: Agent, flow_id: str, number: int) -> Json:
    """Ask for a change under one command id until it is answered. A request that gets no answer in its time is a failure."""

    async def told() -> Json | None:
        try:
            answer = await agent.api("advance", {"flow_id": flow_id, "patch": {"n": number}, "command_id": f"r-{number}"})
        except NoRespondersError:
            return None
        return None if not answer["ok"] and answer["error"]["code"] == "unavailable" else answer

    found = await eventually(told, within=20)
    assert found is not None
    return found


async def the_event_of(heard: Heard, flow_id: str) -> bytes:
    """Return the event of a flow once it was heard."""

    def found() -> list[bytes]:
        return [message.data for message in heard.messages if flow_id in message.subject]

    await heard.until(found)
    return found()[0]


def happened(data: bytes) -> float:
    """Return when an event was committed."""
    return datetime.fromisoformat(json.loads(data)["time"]).timestamp()


def told(stderr: str) -> str:
    """Return the one line that says why the worker did not run; there is no traceback beside it."""
    assert "Traceback" not in stderr, stderr
    (line,) = [line for line in stderr.splitlines() if line.startswith("taskflow: ")]
    return line


def digests(folder: Path) -> dict[str, str]:
    """Return the digest of each file of the database."""
    found = [folder / name for name in ("flows.db", "flows.db-wal")]  # the rest is scratch, and so is an empty log
    kept = [path for path in found if path.exists() and path.stat().st_size]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in kept}


async def fetched(url: str) -> int:
    """Return the status of an HTTP page."""
    host, _, path = url.removeprefix("http://").partition("/")
    reader, writer = await asyncio.open_connection(*host.split(":"))
    try:
        writer.write(f"GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        await writer.drain()
        return int((await reader.read()).split(b" ")[1])
    finally:
        writer.close()
        await writer.wait_closed()


@contextmanager
def closed_port() -> Iterator[int]:
    """Give a port on which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]
