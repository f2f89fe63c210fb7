"""SEMANTICS R13 and R14: rows that cannot be read stop nobody else; every message has one outcome, and they add up."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from nats_taskflow.errors import Internal, WaitConflict
from nats_taskflow.flow.lifecycle import FlowStatus
from tests.running import Running, running
from tests.service.acting import TOPIC, Inlet, external, now, parked, started, timer

GARBAGE = {
    "not json": "'{'",
    "another kind": """'{"kind":"nonsense"}'""",
    "no object": "'[1]'",
    "not utf-8": "CAST(x'ff7b7d' AS TEXT)",
    "deep": "replace(hex(zeroblob(2000)), '00', '[')",
}


def damage(path: Path, column: str, value: str, flow_id: str) -> None:
    """Write into the file as something else than the worker would, while it is closed."""
    with closing(sqlite3.connect(path)) as connection, connection:
        changed = connection.execute(f"UPDATE flows SET {column} = {value} WHERE id = ?", (flow_id,))  # noqa: S608 - our own text
        assert changed.rowcount == 1
    connection.close()


DAMAGES = [
    *[("wait_json", name) for name in GARBAGE],
    *[("state_json", name) for name in ("not json", "not utf-8", "deep")],  # a state may be any JSON
    *[("progress_json", name) for name in ("not json", "no object", "not utf-8", "deep")],  # and progress any object
]


@pytest.mark.parametrize("column, garbage", DAMAGES)
async def test_a_row_that_cannot_be_read_stops_no_other_flows_timer_or_reply(tmp_path: Path, column: str, garbage: str) -> None:
    """SEMANTICS R13: it is set aside and reported once, the others go on in the same tick and the same batch."""
    path = tmp_path / "t.db"
    async with running(str(path)) as run:
        timed, replied = await parked(run, timer(run, seconds=1)), await parked(run, external("good"))
        bad_timed, bad_replied = await parked(run, timer(run, seconds=1)), await parked(run, external("bad"))
    damage(path, column, GARBAGE[garbage], bad_timed.id)
    damage(path, column, GARBAGE[garbage], bad_replied.id)
    async with running(str(path)) as run:
        run.clock.advance(seconds=1)
        report = await run.waits.tick()
        assert (report.resumed, report.errors) == (1, 1)
        assert (await now(run, timed)).status is FlowStatus.RUNNING
        inlet = Inlet(run)
        assert (await inlet.reply(correlation_id="bad")).name == "held"
        assert (await inlet.reply(correlation_id="good")).name == "resumed"
        assert (await now(run, replied)).status is FlowStatus.RUNNING
        again = await run.waits.tick()
        assert (again.resumed, again.errors) == (0, 0)
        assert await run.store.next_due() is None


async def test_a_label_that_is_no_text_stops_nobody(tmp_path: Path) -> None:
    """SEMANTICS R13: the driver refuses a whole result for one such value, and keeps its statement open."""
    path = tmp_path / "t.db"
    async with running(str(path)) as run:
        good, bad = await parked(run, timer(run, seconds=1)), await parked(run, timer(run, seconds=1))
    damage(path, "goal", "CAST(x'ff' AS TEXT)", bad.id)
    async with running(str(path)) as run:
        run.clock.advance(seconds=1)
        report = await run.waits.tick()
        assert (report.resumed, report.errors) == (2, 0)
        flows = {flow.id: flow for flow in await run.manager.list_by_owner("owner")}
        assert (flows[good.id].goal, flows[bad.id].goal) == ("test", "\ufffd")


async def test_a_damaged_flow_is_shown_as_damaged_and_takes_no_command(tmp_path: Path) -> None:
    """SEMANTICS R13: reported, not guessed at; lists leave it out."""
    path = tmp_path / "t.db"
    async with running(str(path)) as run:
        good, bad = await started(run), await parked(run, {"kind": "manual"})
    damage(path, "state_json", GARBAGE["not json"], bad.id)
    async with running(str(path)) as run:
        with pytest.raises(Internal, match=bad.id):
            await run.manager.get(bad.id)
        with pytest.raises(Internal, match=bad.id):
            await run.manager.resume(bad.id)
        assert [flow.id for flow in await run.manager.list_by_owner("owner")] == [good.id]


async def test_a_damaged_flow_that_holds_a_pair_is_a_plain_conflict_to_others(tmp_path: Path) -> None:
    """SEMANTICS R6 and R13: somebody else's damage is no defect of this command."""
    path = tmp_path / "t.db"
    async with running(str(path)) as run:
        bad, flow = await parked(run, external()), await started(run)
    damage(path, "state_json", GARBAGE["not json"], bad.id)
    async with running(str(path)) as run:
        with pytest.raises(WaitConflict):
            await run.manager.set_waiting(flow.id, external())


async def test_an_observation_on_a_flow_whose_wait_cannot_be_read_spoils_nothing(tmp_path: Path) -> None:
    """SEMANTICS R13."""
    path = tmp_path / "t.db"
    async with running(str(path)) as run:
        bad = await parked(run, external())
    damage(path, "wait_json", GARBAGE["another kind"], bad.id)
    async with running(str(path)) as run:
        with pytest.raises(Internal, match="cannot be read"):
            await run.manager.update_state(bad.id, {"n": 1})


async def test_a_held_reply_that_cannot_be_read_stops_neither_the_parking_nor_the_sweeper(tmp_path: Path) -> None:
    """SEMANTICS R4 and R13."""
    path = tmp_path / "t.db"
    async with running(str(path)) as run:
        inlet = Inlet(run)
        await inlet.reply({"n": 1}, event_id="bad")
        await inlet.reply({"n": 2}, event_id="good")
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE held SET payload_json = '{' WHERE event_id = 'bad'")
    connection.close()
    async with running(str(path)) as run:
        assert (await parked(run, external())).state_json["resume_event"] == {"n": 2}
        run.clock.advance(days=2)
        assert await run.engine.do(lambda t: t.expire_held(run.clock.us, 10)) == 1


# SEMANTICS R14: the outcomes add up


async def ledger(run: Running) -> dict[str, int]:
    return {name.removeprefix("inbox."): value for name, value in (await run.store.counts()).items() if name.startswith("inbox.") and value}


async def test_the_counted_outcomes_add_up_to_the_messages_taken_in() -> None:
    """SEMANTICS R14 and I-16: every outcome once, and each message has its row."""
    async with running() as run:
        inlet = Inlet(run)
        ended = await parked(run, external("late"))
        await run.manager.cancel(ended.id)
        await parked(run, external("one"))
        await parked(run, {"kind": "all_of", "conditions": [external("x"), external("y")]})
        await inlet.reply({"n": 1}, correlation_id="one", event_id="e1")  # resumed
        await inlet.reply({"n": 1}, correlation_id="one", event_id="e1")  # duplicate
        await inlet.reply({"n": 2}, correlation_id="one", event_id="e1")  # conflict
        await inlet.reply({"n": 1}, correlation_id="late")  # late
        await inlet.reply({"n": 1}, correlation_id="x")  # progressed
        await inlet.reply({"n": 1}, correlation_id="y", flow_id=ended.id)  # flow_mismatch
        await inlet.reply({"n": 1}, correlation_id="early")  # held
        await inlet.reply({"n": 1}, correlation_id="old")  # held, then expired
        await inlet.message(TOPIC, {}, b"\xff")  # dead
        await inlet.reply({"n": 1}, correlation_id="used")  # held, then resumed
        await parked(run, external("used"))
        await inlet.reply({"n": 1}, correlation_id="late", seq=4)  # a redelivery is no message
        inlet.taken -= 1
        run.clock.advance(days=1)
        await inlet.reply({"n": 1}, correlation_id="young")
        await run.engine.do(lambda t: t.expire_held(run.clock.us, 1))
        counted = await ledger(run)
        assert counted == {
            "resumed": 2,
            "duplicate": 1,
            "conflict": 1,
            "late": 1,
            "progressed": 1,
            "flow_mismatch": 1,
            "held": 2,
            "expired": 1,
            "dead": 1,
        }
        assert sum(counted.values()) == inlet.taken
        found = await run.store._read("SELECT outcome, count(*) FROM inbox GROUP BY outcome", ())
        assert dict(found) == counted


async def test_the_counter_of_flows_is_what_a_count_would_give() -> None:
    """SEMANTICS 3: totals come from maintained counters."""
    async with running() as run:
        flows = [await started(run) for _ in range(6)]
        await run.manager.set_waiting(flows[0].id, {"kind": "manual"})
        await run.manager.set_waiting(flows[1].id, timer(run, seconds=1))
        await run.manager.finish(flows[2].id)
        await run.manager.fail(flows[3].id, "broke")
        await run.manager.cancel(flows[4].id)
        run.clock.advance(seconds=1)
        await run.waits.tick()
        found = dict(await run.store._read("SELECT 'flows.' || status, count(*) FROM flows GROUP BY status", ()))
        counted = {name: value for name, value in (await run.store.counts()).items() if name.startswith("flows.") and value}
        assert counted == found
