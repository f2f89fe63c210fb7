"""One regression test for each defect of the reference that SEMANTICS 7 lists, as far as it shows inside one process.

"Daemon and CLI can open different databases" shows only with both: `tests/unit/test_config.py` and `tests/e2e`.
"""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from nats_taskflow.config import Config
from nats_taskflow.doors.flow_manager import StepObservation
from nats_taskflow.errors import Internal, TopologyRefused
from nats_taskflow.flow.lifecycle import FlowStatus, FlowStepStatus
from nats_taskflow.flow.stimuli import Caller, CancelFlow, DeadlinePassed, RequestCancel
from nats_taskflow.store.port import LostRace
from nats_taskflow.store.records import Batch
from nats_taskflow.store.sqlite.transaction import SqliteTransaction
from nats_taskflow.wire.reply_bindings import Binding
from tests.eventually import eventually
from tests.running import Running, an_input, running
from tests.service.acting import Inlet, external, journal, now, parked, started, timer
from tests.service.line import TOPIC, Line, living, sequences


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "taskflow.db"


async def test_an_early_reply_is_not_dropped(path: Path) -> None:
    """Defect: early reply dropped. Held durably: over a restart as well."""
    async with running(str(path)) as run:
        assert (await Inlet(run).reply({"n": 1})).name == "held"
    async with running(str(path)) as run:
        assert (await parked(run, external())).state_json["resume_event"] == {"n": 1}


async def test_messages_sent_while_the_worker_is_down_are_not_lost(path: Path) -> None:
    """Defect: messages lost while the worker is down (core NATS)."""
    line = Line(path)
    await line.start()
    flow_id = await line.parked()
    await line.kill()
    await line.reply({"n": 1})
    name = await line.command("start", controller_id="c", goal="g")
    await line.start()
    await line.settled()
    assert (await line.flow(flow_id)).state_json["resume_event"] == {"n": 1}
    assert (await line.outcome(name))["ok"]
    await line.stop()


async def test_a_worker_that_cannot_listen_does_not_start(path: Path) -> None:
    """Defect: a failed subscribe silently disables the bridge. It is refused, naming the stream, before anything is taken in."""
    line = Line(path, Config(replies=(Binding(subject="theirs.replies", stream="NOT_THERE"),)))
    with pytest.raises(TopologyRefused, match="NOT_THERE") as refused:
        await line.start()
    assert refused.value.exit_code == 78
    assert line.broker.consumers == {}
    await line.bus.close()
    await line.store.close()


async def test_a_stale_timer_does_not_resume_a_newer_wait() -> None:
    """Defect: stale timer resumes a newer wait (match on one read, resume on another)."""
    async with running() as run:
        flow = await parked(run, timer(run, seconds=1))
        run.clock.advance(seconds=1)
        (due,) = (await run.store.due(run.clock.us, 10)).flows
        await run.manager.resume(flow.id)
        newer = await run.manager.set_waiting(flow.id, timer(run, hours=1))
        await run.engine.submit(DeadlinePassed(flow_id=flow.id, wait_id=due.wait_id or 0, at_us=run.clock.us))
        assert (await now(run, flow)) == newer


async def test_a_stale_reply_does_not_resume_a_newer_wait() -> None:
    """Defect: stale reply resumes a newer wait. The pair is looked up in the transaction that resumes."""
    async with running() as run:
        flow, inlet = await parked(run, external("old")), Inlet(run)
        resuming = asyncio.ensure_future(run.manager.resume(flow.id))
        parking = asyncio.ensure_future(run.manager.set_waiting(flow.id, external("new")))
        replying = asyncio.ensure_future(inlet.reply({"for": "old"}, correlation_id="old"))
        await resuming
        newer = await parking
        assert (await replying).name == "held"
        assert (await now(run, flow)) == newer


async def test_a_reply_is_not_lost_after_lost_races(monkeypatch: pytest.MonkeyPatch) -> None:
    """Defect: reply lost after two lost races. It is tried again, and past the budget it is not acked but comes again."""
    async with running() as run:
        flow, inlet, save, lose = await parked(run, external()), Inlet(run), SqliteTransaction.save, [2]

        def racing(self: SqliteTransaction, batch: Batch) -> None:
            if lose[0] > 0:
                lose[0] -= 1
                raise LostRace("a flow changed under the batch")
            save(self, batch)

        monkeypatch.setattr(SqliteTransaction, "save", racing)
        assert (await inlet.reply({"n": 1})).name == "resumed"
        assert (await now(run, flow)).state_json["resume_event"] == {"n": 1}


async def test_a_reply_that_lost_every_race_comes_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Defect: reply lost after lost races; the line's half of it."""
    async with living(path) as line:
        flow_id, save, losing = await line.parked(), SqliteTransaction.save, [True]

        def racing(self: SqliteTransaction, batch: Batch) -> None:
            if losing[0] and any(event.kind == "resumed" for event in batch.events):
                raise LostRace("a flow changed under the batch")
            save(self, batch)

        monkeypatch.setattr(SqliteTransaction, "save", racing)
        await line.reply({"n": 1})
        await line.tried(3)
        assert line.floor == 2
        losing[0] = False
        line.advance(seconds=1)
        await line.settled()
        assert (await line.flow(flow_id)).state_json["resume_event"] == {"n": 1}


def refusing(path: Path, table: str) -> None:
    """Make every insert into a table fail."""
    connection = sqlite3.connect(path)
    connection.execute(f"CREATE TRIGGER refuse BEFORE INSERT ON {table} BEGIN SELECT RAISE(ABORT, 'refused by a test'); END")
    connection.commit()
    connection.close()


async def test_a_flow_and_its_journal_entry_are_one_transaction(path: Path) -> None:
    """Defect: create and its journal row in two transactions. Where the entry cannot be written there is no flow."""
    async with running(str(path)) as run:
        kept = await run.manager.create_managed(an_input())
        refusing(path, "flow_events")
        with pytest.raises(Internal):
            await run.manager.create_managed(an_input())
        with pytest.raises(Internal):
            await run.manager.start_running(kept.id)
        assert await run.manager.list_by_owner("owner") == [kept]


async def test_an_observation_and_its_journal_entry_are_one_transaction(path: Path) -> None:
    """Defect: … (steps too)."""
    async with running(str(path)) as run:
        flow = await started(run)
        refusing(path, "flow_events")
        with pytest.raises(Internal):
            await run.manager.record_step_observation(StepObservation(flow_id=flow.id, run_id="r", task="t", status=FlowStepStatus.RUNNING))
        assert await run.manager.list_steps(flow.id) == []


async def test_one_corrupt_row_stops_no_timer(path: Path) -> None:
    """Defect: one corrupt row stops every timer. Also where hundreds are due before the good ones."""
    async with running(str(path)) as run:
        bad = await asyncio.gather(*[parked(run, timer(run, seconds=1)) for _ in range(600)])
        good = await parked(run, timer(run, seconds=2))
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executemany('UPDATE flows SET wait_json = \'{"kind":"?"}\' WHERE id = ?', [(flow.id,) for flow in bad])
    connection.close()
    async with running(str(path)) as run:
        run.clock.advance(seconds=2)
        for _ in range(2):
            await run.waits.tick()
        assert (await now(run, good)).status is FlowStatus.RUNNING
        assert (await run.waits.tick()).errors == 0


async def test_an_unparseable_wait_is_reported_as_an_error_and_not_skipped_for_ever(path: Path) -> None:
    """Defect: unparseable wait skipped for ever at debug level."""
    async with running(str(path)) as run:
        flow = await parked(run, timer(run, seconds=1))
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute('UPDATE flows SET wait_json = \'{"kind":"someday"}\'')
    connection.close()
    async with running(str(path)) as run:
        run.clock.advance(seconds=1)
        with capture_logs() as logs:
            assert (await run.waits.tick()).errors == 1
            assert (await run.waits.tick()).errors == 0
        (reported,) = [entry for entry in logs if entry["event"] == "flow_set_aside"]
        assert (reported["log_level"], reported["flow_id"]) == ("error", flow.id)
        assert "someday" in reported["why"]


async def effort(run: Running) -> int:
    """Count what SQLite does for one tick, in virtual machine instructions."""
    done = [0]

    def count() -> int:
        done[0] += 1
        return 0

    connections = run.store.connections
    for connection in connections:
        await connection.set_progress_handler(count, 1)
    await run.waits.tick()
    for connection in connections:
        await connection.set_progress_handler(None, 0)  # type: ignore[arg-type]  # sqlite3 takes None to stop
    return done[0]


async def test_a_tick_costs_what_is_due_not_what_waits(path: Path) -> None:
    """Defect: tick reads every waiting flow."""
    async with running(str(path)) as run:
        efforts = []
        for waiting in (20, 2000):
            await asyncio.gather(*[parked(run, timer(run, days=1)) for _ in range(waiting)])
            for _ in range(3):
                await parked(run, timer(run, seconds=1))
            await effort(run)  # nothing due: statements are compiled now
            run.clock.advance(seconds=1)
            efforts.append(await effort(run))
        assert (await run.store.counts())["flows.waiting"] == 2020
        assert efforts[1] < 1.3 * efforts[0], efforts


async def test_events_have_a_sequence_in_which_gaps_show(path: Path) -> None:
    """Defect: events without sequence, so gaps are invisible."""
    async with living(path) as line:
        flow_id = await line.parked()
        await line.done("observe", flow_id=flow_id, run_id="r", task="t", status="running")
        await line.settled()
        events = [msgspec.json.decode(event.body) for event in await line.events()]
        assert [event["sequence"] for event in events] == [f"{n:010d}" for n in range(1, 5)]
        assert sequences(await line.events()) == {flow_id: [1, 2, 3, 4]}


async def test_a_cancellation_has_its_reason_in_the_journal() -> None:
    """Defect: cancel without reason."""
    async with running() as run:
        flow, other = await started(run), await started(run)
        await run.manager.cancel(flow.id, "no longer needed")
        operator = Caller(actor="operator:ann", cause="cmd-1")
        await run.engine.submit(RequestCancel(flow_id=other.id, reason="too expensive", caller=operator))
        await run.engine.submit(CancelFlow(flow_id=other.id, reason="wound down"))
        last = (await run.manager.list_events(flow.id, 10))[-1]
        assert (last.kind.value, last.payload["reason"]) == ("cancelled", "no longer needed")
        asked, ended = (await run.manager.list_events(other.id, 10))[-2:]
        assert (asked.payload["reason"], asked.actor, asked.cause) == ("too expensive", "operator:ann", "cmd-1")
        assert ended.payload["reason"] == "wound down"


@pytest.mark.parametrize("at_once", [True, False], ids=["in one batch", "after a restart"])
@pytest.mark.parametrize("by", ["time", "a reply"])
async def test_a_cancellation_that_was_requested_has_its_reason_when_it_happens(tmp_path: Path, by: str, at_once: bool) -> None:
    """Defect: cancel without reason. The row keeps only that it is wanted; why is in the journal."""
    path = str(tmp_path / "flows.db")
    async with running(path) as run:
        flow = await parked(run, external())
        assert flow.wait_id is not None
        asked = run.engine.submit(RequestCancel(flow_id=flow.id, reason="too expensive"))
        if not at_once:
            await asked
        else:
            await _cancelled(run, flow.id, flow.wait_id, by)
            return
    async with running(path) as run:
        await _cancelled(run, flow.id, flow.wait_id, by)


async def _cancelled(run: Running, flow_id: str, wait_id: int, by: str) -> None:
    """Let the requested cancellation happen, and look at what the journal says of it."""
    if by == "time":
        await run.engine.submit(DeadlinePassed(flow_id=flow_id, wait_id=wait_id, at_us=run.clock.us))
    else:
        assert (await Inlet(run).reply({"n": 1})).name == "late"
    last = (await run.manager.list_events(flow_id, 10))[-1]
    assert (last.kind.value, last.payload["reason"]) == ("cancelled", "too expensive")


async def test_the_worker_prunes_by_itself(path: Path) -> None:
    """Defect: prune never called."""
    line = Line(path)
    await line.start()
    flow_id = await line.started()
    await line.done("finish", flow_id=flow_id)
    await line.stop()
    line.clock.advance(days=31)
    await line.start()
    await eventually(lambda: _is_gone(line, flow_id))
    await line.stop()


async def _is_gone(line: Line, flow_id: str) -> bool:
    return await line.store.get(flow_id) is None


def enveloped(topic: str, payload: Any) -> dict[str, Any]:
    return {"id": "env-1", "timestamp": "2026-11-21T10:00:00Z", "topic": topic, "source": "x", "session_id": None, "payload": payload}


@pytest.mark.parametrize("wrap", [lambda _, payload: payload, enveloped], ids=["bare", "enveloped"])
async def test_bare_and_enveloped_json_are_both_understood_on_every_subject(path: Path, wrap: Any) -> None:
    """Defect: documented `nats pub` body undecodable."""
    async with living(path) as line:

        async def publish(subject: str, payload: Any, msg_id: str) -> None:
            await line.agent.publish(subject, msgspec.json.encode(wrap(subject, payload)), {"Nats-Msg-Id": msg_id})

        await publish("taskflow.cmd.kate.start", {"controller_id": "c", "goal": "g"}, "start-1")
        flow_id = (await line.outcome("start-1"))["flow"]["id"]
        wait = {"kind": "external_event", "topic": TOPIC, "correlation_id": "c-1"}
        for n, (subject, body) in enumerate(
            [
                (TOPIC, {"correlation_id": "c-1", "payload": {"n": 1}}),
                ("taskflow.resume", {"flow_id": flow_id, "topic": TOPIC, "correlation_id": "c-1", "payload": {"n": 1}}),
            ]
        ):
            assert (await line.done("wait", flow_id=flow_id, wait_condition=wait))["ok"]
            await publish(subject, body, f"reply-{n}")
            await line.settled()
            assert (await line.flow(flow_id)).state_json["resume_event"] == {"n": 1}
        assert await line.dead() == []


async def test_the_journal_says_how_a_flow_got_where_it_is() -> None:
    """The sum of them: every accepted change, and nothing that was refused, is in the journal."""
    async with running() as run:
        flow, inlet = await parked(run, external()), Inlet(run)
        await inlet.reply({"n": 1}, correlation_id="other")
        await inlet.reply({"n": 1}, event_id="e1")
        await inlet.reply({"n": 1}, event_id="e1")
        await run.manager.finish(flow.id)
        assert await journal(run, flow) == ["created", "started", "waiting", "resumed", "finished"]
