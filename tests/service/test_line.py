"""The line a message takes through the whole worker (ARCHITECTURE 2): in, decided, settled, published; and what a kill leaves."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import uuid
from collections.abc import Awaitable, Callable, Iterator
from functools import partialmethod
from pathlib import Path
from typing import Any
from unittest.mock import patch

import msgspec
import pytest
from structlog.testing import capture_logs

from nats_taskflow.bus.memory.bus import StoredMessage
from nats_taskflow.bus.port import ConsumerSpec, Delivery, InProgress
from nats_taskflow.doors.flow_manager import FlowManager
from nats_taskflow.engine import engine
from nats_taskflow.engine.reader import Verdict
from nats_taskflow.errors import ConsumerTaken, StoreBroken, Unavailable
from nats_taskflow.flow.decide import decide
from nats_taskflow.flow.lifecycle import FlowStatus
from nats_taskflow.flow.stimuli import FinishFlow
from nats_taskflow.services import consumer, ordered_publisher, relay
from nats_taskflow.store.records import Batch
from nats_taskflow.store.sqlite.transaction import SqliteTransaction
from nats_taskflow.units import rfc3339
from nats_taskflow.wire.headers import MSG_ID
from tests.eventually import eventually
from tests.running import an_input
from tests.service.line import TOPIC, Gate, Line, living, sequences


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "taskflow.db"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The waits that are no virtual time are short here."""
    monkeypatch.setattr(engine, "_STALL", 0.01)
    monkeypatch.setattr(ordered_publisher, "_RETRY_FIRST", 0.005)
    monkeypatch.setattr(ordered_publisher, "_RETRY_LAST", 0.05)
    monkeypatch.setattr(relay, "_MARK_EVERY", 0.02)


def kinds(events: list[Any]) -> list[str]:
    return [event.subject.rpartition(".")[2] for event in events]


# --- in


async def test_dead_letters_of_held_replies_are_published_without_waiting_for_another_dead_letter(path: Path) -> None:
    """I-23: one that expires, and one that its wait does not accept, both long after they came."""
    async with living(path) as line:
        await line.reply("nobody came", "expires", event_id="e1")
        await line.reply("no number", "spoils", event_id="e2")
        await line.settled()
        await line.parked("spoils", accept={"type": "number"})
        spoilt = await eventually(line.dead)
        assert [letter.subject for letter in spoilt] == ["taskflow.dlq.not_accepted"]
        line.clock.advance(hours=25)
        await line.services.pruner.prune()
        letters = await eventually(lambda: _letters(line, 2))
        assert letters[1].subject == "taskflow.dlq.expired"


async def test_nothing_is_taken_in_while_messages_may_be_from_somebody_else_and_all_of_it_afterwards(path: Path) -> None:
    """CONTRACT 1: an operator sets a transform on the stream while the worker runs."""
    async with living(path) as line:
        inbound, inspector = line.broker.streams["TASKFLOW_IN"].config, line.services.inspector
        await line.started()
        inbound["subject_transform"] = {"src": "taskflow.cmd.kate.*", "dest": "taskflow.cmd.mallory.{{wildcard(1)}}"}
        for _ in range(2):
            await inspector.inspect()
            await eventually(lambda: not line.broker.wakers)
        name = await line.command("start", controller_id="kate/test", goal="test")
        status, _ = await line.ask("outcome", command_id=name)
        assert status["error"]["code"] == "no_outcome"
        assert any("nothing is taken" in flaw for flaw in inspector.flaws)
        inbound["subject_transform"] = None
        await inspector.inspect()
        assert (await line.outcome(name))["ok"]
        inbound["subject_transform"] = {"src": ">", "dest": "x.>"}
        await inspector.inspect()  # and it stops in the middle of that


async def _letters(line: Line, number: int) -> list[StoredMessage]:
    """Return the dead letters once there are this many."""
    found = await line.dead()
    return found if len(found) >= number else []


async def test_a_story_from_the_first_command_to_the_last_event(path: Path) -> None:
    """CONTRACT 2 to 5."""
    async with living(path) as line:
        flow_id = await line.parked()
        await line.reply({"answer": 42})
        await eventually(lambda: line.services.relays[0].idle and line.floor == 3)
        done = await line.done("finish", flow_id=flow_id, final_state={"result": "good"})
        assert done["flow"]["state"]["resume_event"] == {"answer": 42}
        await line.settled()
        events = await line.events()
        assert kinds(events) == ["created", "started", "waiting", "resumed", "finished"]
        assert [event.headers[MSG_ID] for event in events] == [f"{flow_id}:{seq}" for seq in range(1, 6)]
        shown = [msgspec.json.decode(event.body) for event in events]
        assert [(one["id"], one["sequence"], one["subject"]) for one in shown] == [
            (f"{flow_id}:{seq}", f"{seq:010d}", flow_id) for seq in range(1, 6)
        ]


async def test_a_message_is_acked_only_after_its_commit(path: Path) -> None:
    """I-4; and nothing of it is published before."""
    async with living(path) as line:
        gate = Gate()
        with gate.closed():
            name = await line.command("start", controller_id="c", goal="g")
            await gate.reached.wait()
            for _ in range(20):
                await asyncio.sleep(0)
            assert (line.floor, line.services.consumers[0].in_hand) == (0, 1)
            assert await line.events() == []
            assert await line.store.outcome("cmd:kate", name) is None
            gate.open()
            await line.settled()
        assert line.floor == 1
        assert kinds(await line.events()) == ["created", "started"]


async def test_a_command_and_a_request_share_their_ids_and_outcomes(path: Path) -> None:
    """CONTRACT 3: one key space per agent."""
    async with living(path) as line:
        fields = {"controller_id": "c", "goal": "g"}
        sent = await line.done("start", "id-1", **fields)
        asked, _ = await line.ask("start", command_id="id-1", **fields)
        assert asked == sent
        other, headers = await line.ask("start", command_id="id-1", **{**fields, "goal": "another"})
        assert (other["error"]["code"], headers["Nats-Service-Error-Code"]) == ("conflict", "409")
        shown, _ = await line.ask("outcome", command_id="id-1")
        assert shown == sent
        assert len((await line.ask("list_mine"))[0]["flows"]) == 1


async def test_a_sender_that_names_an_inbox_hears_the_outcome(path: Path) -> None:
    """CONTRACT 3: also of a refusal, and of a repeat; and only an inbox is written to."""
    async with living(path) as line:
        inbox, elsewhere = await line.agent.subscribe("_INBOX.me.>"), await line.agent.subscribe("other.>")
        headers = {"Taskflow-Reply-To": "_INBOX.me.1"}
        for _ in range(2):
            await line.command("finish", f"f-{uuid.uuid4()}", headers, flow_id=str(uuid.uuid4()))
        start = {"controller_id": "c", "goal": "g"}
        await line.command("start", "s-1", headers, **start)
        await line.command("start", "s-2", {"Taskflow-Reply-To": "other.1"}, **start)
        heard = [msgspec.json.decode((await asyncio.wait_for(inbox.get(), 5)).body) for _ in range(3)]
        assert [one.get("error", {}).get("code", "ok") for one in heard] == ["not_found", "not_found", "ok"]
        await line.settled()
        assert elsewhere.empty()


async def test_what_cannot_be_read_is_dead_lettered_whole_and_the_next_message_is_unharmed(path: Path) -> None:
    """CONTRACT 1: raw body, headers and where it came from; terminated at the broker."""
    async with living(path) as line:
        await line.agent.publish("taskflow.cmd.kate.start", b"\xff{", {"X": "y"})
        await line.agent.publish(TOPIC, b'{"no": "correlation"}')
        assert (await line.done("start", controller_id="c", goal="g"))["ok"]
        await line.settled()
        first, second = await line.dead()
        assert (first.subject, first.body) == ("taskflow.dlq.malformed", b"\xff{")
        assert first.headers["Taskflow-Origin-Subject"] == "taskflow.cmd.kate.start"
        assert (first.headers["Taskflow-Origin-Stream"], first.headers["Taskflow-Origin-Sequence"]) == ("TASKFLOW_IN", "1")
        assert "X" in first.headers["Taskflow-Headers"]
        assert second.subject == "taskflow.dlq.no_correlation"
        assert line.floor == 3


async def test_the_log_names_what_became_a_dead_letter_and_why_without_the_payload(path: Path) -> None:
    """Whoever published it hears of it nowhere else: the broker has stored it, and no outcome has its name."""
    async with living(path) as line:
        with capture_logs() as logs:
            await line.agent.publish("taskflow.cmd.kate.start", b'{"goal": "s3cret", "controller_id": "c"}', {})
            await line.agent.publish(TOPIC, b'{"no": "correlation", "payload": "s3cret"}')
            await line.agent.publish("taskflow.cmd.kate.dance", b"{}")
            await line.reply("s3cret", "spoils", event_id="e2")
            await line.settled()
            await line.parked("spoils", accept={"type": "number"})
            letters = await eventually(lambda: _letters(line, 4))
        told = [entry for entry in logs if entry["event"] == "dead_lettered"]
        assert sorted(f"taskflow.dlq.{entry['reason']}" for entry in told) == sorted(letter.subject for letter in letters)
        assert {entry["subject"] for entry in told} == {"taskflow.cmd.kate.start", "taskflow.cmd.kate.dance", TOPIC}
        assert {entry["log_level"] for entry in told} == {"warning"}
        assert all(entry["why"] for entry in told)
        assert "s3cret" not in str(told)


async def test_a_refusal_is_an_outcome_and_no_dead_letter(path: Path) -> None:
    """RELIABILITY, head: what can be attributed to a command id is answered there."""
    async with living(path) as line:
        refused = await line.done("finish", flow_id=str(uuid.uuid4()))
        assert refused["error"]["code"] == "not_found"
        bad = await line.done("start", controller_id="c")
        assert bad["error"]["code"] == "invalid_request"
        await line.settled()
        assert await line.dead() == []


# --- when the store cannot, or we fail


async def test_while_the_disk_is_full_messages_wait_however_long_and_none_is_blamed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ARCHITECTURE 3: stop pulling, recover by itself; a message is not poison because there was no room for it."""
    async with living(path) as line:
        refused: list[int] = []
        commit, has_room = SqliteTransaction.commit, asyncio.Event()

        def full(transaction: SqliteTransaction) -> None:
            if has_room.is_set():
                return commit(transaction)
            refused.append(line.clock.us)
            raise Unavailable("database or disk is full", full=True)

        monkeypatch.setattr(SqliteTransaction, "commit", full)
        flow_id = str(uuid.uuid4())
        name = await line.command("start", controller_id="c", goal="g", flow_id=flow_id)
        await eventually(lambda: len(refused) >= 2)
        follower = await line.command("advance", flow_id=flow_id, patch={"k": 1})
        await eventually(lambda: len(refused) >= 3)
        assert line.services.engine.stalled
        assert line.services.consumers[0].in_hand >= 1
        assert line.floor == 0
        has_room.set()
        assert (await line.outcome(name))["ok"]
        assert (await line.outcome(follower))["ok"], "what came later was not decided before it"
        await line.settled()
        assert await line.dead() == []
        assert not line.services.engine.stalled


async def test_a_message_we_always_fail_on_comes_again_ever_later_and_is_then_dead_lettered(path: Path) -> None:
    """RELIABILITY 4 (59): 1, 5, 30, 120 s; five times begun, never a sixth; the others go on meanwhile."""
    async with living(path) as line:
        begun: list[int] = []
        read = line.services.consumers[0]._read

        def defective(delivery: Delivery) -> Verdict:
            if delivery.subject.endswith(".advance"):
                begun.append(line.clock.us)
                raise RuntimeError("a defect of the codec")
            return read(delivery)

        line.services.consumers[0]._read = defective
        await line.command("advance", flow_id=str(uuid.uuid4()))
        await eventually(lambda: len(begun) == 1)
        for number, delay in enumerate((1, 5, 30, 120), start=2):
            assert (await line.done("start", controller_id="c", goal="g"))["ok"], "others are not held up"
            line.advance(seconds=delay - 0.001)
            assert (await line.done("start", controller_id="c", goal="g"))["ok"]
            assert len(begun) == number - 1, "not before its time"
            line.advance(seconds=0.001)
            await eventually(lambda number=number: len(begun) == number)  # type: ignore[misc]  # a default keeps the value
        line.advance(seconds=120)
        await line.settled()
        assert len(begun) == 5
        (letter,) = await line.dead()
        assert letter.subject == "taskflow.dlq.poison"
        assert not line.failed


async def test_what_failed_before_a_kill_and_after_it_is_counted_together(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RELIABILITY 4 (59): five times in all, whether we failed on it or died of it."""
    line, begun = Line(path), list[int]()

    def failing(stimulus: Any, *view: Any) -> Any:
        if isinstance(stimulus, FinishFlow):
            begun.append(line.clock.us)
            raise RuntimeError("a defect of the core")
        return decide(stimulus, *view)

    monkeypatch.setattr("nats_taskflow.engine.batch.decide", failing)
    await line.start()
    await line.command("finish", flow_id=str(uuid.uuid4()))
    await line.tried(1)
    await line.kill()
    await line.start()
    for number in range(2, 6):
        await eventually(lambda number=number: len(begun) == 2 * number)  # type: ignore[misc]  # a default keeps the value
        await eventually(lambda: line.services.consumers[0].in_hand == 0)
        line.advance(seconds=120)
    await line.settled()
    assert len(begun) == 2 * 5, "each time it is begun it is tried twice at once"
    assert [letter.subject for letter in await line.dead()] == ["taskflow.dlq.poison"]
    await line.stop()


async def test_a_message_for_a_damaged_flow_is_kept_for_its_repair_before_it_is_given_up(path: Path) -> None:
    """SEMANTICS R13: it is not used up by somebody else's damage."""
    async with living(path) as line:
        flow_id = await line.parked()
        await line.store._writer.execute_fetchall("UPDATE flows SET state_json = '{' WHERE id = ?", (flow_id,))
        name = await line.command("resume", flow_id=flow_id)
        await line.tried(3)
        assert (line.floor, await line.store.outcome("cmd:kate", name)) == (2, None)
        await line.store._writer.execute_fetchall("UPDATE flows SET state_json = '{}', set_aside = NULL WHERE id = ?", (flow_id,))
        line.advance(seconds=1)
        assert (await line.outcome(name))["ok"]


# --- kills


async def test_a_decided_message_that_comes_again_is_acked_and_not_counted_twice(path: Path) -> None:
    """SEMANTICS R14 and I-1: killed between the commit and the ack."""
    line = Line(path)
    await line.start()
    gate = Gate()
    with gate.closed():
        name = await line.command("start", controller_id="c", goal="g")
        await gate.reached.wait()
        line.bus.disconnect()
        gate.open()
        first = await line.outcome(name)
        await line.kill()
    assert line.floor == 0
    await line.start()
    await line.settled()
    assert line.floor == 1
    assert await line.outcome(name) == first
    counts = await line.store.counts()
    assert (counts["inbox.applied"], counts.get("inbox.duplicate", 0), counts["flows.running"]) == (1, 0, 1)
    assert sequences(await line.events()) == {first["flow"]["id"]: [1, 2]}
    await line.stop()


async def test_what_was_not_committed_when_the_worker_died_is_done_by_the_next_one(path: Path) -> None:
    """SEMANTICS 7: no message is lost with the worker."""
    line = Line(path)
    await line.start()
    gate = Gate()
    with gate.closed():
        name = await line.command("start", controller_id="c", goal="g")
        await gate.reached.wait()
        gate.drop()
        await line.kill()
    await line.start()
    assert (await line.outcome(name))["ok"]
    assert (await line.store.counts())["inbox.applied"] == 1
    await line.stop()


async def test_a_message_that_kills_the_worker_five_times_is_dead_lettered_before_the_sixth(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ARCHITECTURE 3: found by attempts kept in the store; what was merely beside it, before or behind, is done."""
    line, begun = Line(path), list[int]()
    died = asyncio.Event()

    def killing(stimulus: Any, *view: Any) -> Any:
        if isinstance(stimulus, FinishFlow):
            begun.append(line.clock.us)
            died.set()
            raise asyncio.CancelledError
        return decide(stimulus, *view)

    monkeypatch.setattr("nats_taskflow.engine.batch.decide", killing)
    await line.start()
    await line.stop()
    first = await line.command("start", controller_id="c", goal="before")
    killer = await line.command("finish", flow_id=str(uuid.uuid4()))
    last = await line.command("start", controller_id="c", goal="behind")
    for _ in range(5):
        died.clear()
        await line.start()
        await asyncio.wait_for(died.wait(), 5)
        await line.kill()
    assert len(begun) == 5
    await line.start()
    await line.settled()
    assert len(begun) == 5
    assert [letter.subject for letter in await line.dead()] == ["taskflow.dlq.poison"]
    assert await line.store.outcome("cmd:kate", killer) is None
    assert all([(await line.outcome(name))["ok"] for name in (first, last)])
    await line.stop()


async def test_a_message_that_is_delivered_again_while_it_is_in_hand_is_decided_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RELIABILITY 3, row 22: a broker without patience makes no work."""
    async with living(path) as line:
        submitted: list[Any] = []
        submit = line.services.engine.submit

        def counted(*args: Any, **named: Any) -> Any:
            submitted.append(args)
            return submit(*args, **named)

        monkeypatch.setattr(line.services.engine, "submit", counted)
        gate = Gate()
        with gate.closed():
            await line.command("start", controller_id="c", goal="g")
            await gate.reached.wait()
            line.clock.advance(seconds=31)
            line.broker.tick()
            await eventually(lambda: [one.attempt for one in line.services.consumers[0]._in_hand.values()] == [2])
            gate.open()
            await line.settled()
        assert len(submitted) == 1
        assert (await line.store.counts())["inbox.applied"] == 1


async def test_what_is_long_in_hand_is_kept_by_the_patience_that_the_broker_has_now(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumer, "_LOOK_EVERY", 0.001)
    async with living(path) as line:
        gate = Gate()
        with gate.closed():
            await line.command("start", controller_id="c", goal="g")
            await gate.reached.wait()
            assert line.bus.settled == []
            line.broker.consumer(line.services.consumers[0]._source).config["ack_wait"] = 3_000_000
            await eventually(lambda: line.bus.settled.count(InProgress()) >= 3)
            gate.open()
            await line.settled()


async def test_after_a_kill_the_innocent_are_cleared_in_groups(path: Path) -> None:
    """ARCHITECTURE 3: one that gets its outcome is a suspect no more. Not one by one: each would take two transactions."""
    line = Line(path)
    await line.start()
    for turn in range(3):
        gate = Gate()
        with gate.closed():
            names = [await line.command("start", controller_id="c", goal=f"{turn}.{n}") for n in range(30)]
            await gate.reached.wait()
            await eventually(lambda: line.services.consumers[0].in_hand == 30)
            gate.drop()
            await line.kill()
        sizes: list[int] = []
        with patch.object(SqliteTransaction, "note_attempts", partialmethod(_noted, sizes, SqliteTransaction.note_attempts)):
            await line.start()
            assert all([(await line.outcome(name))["ok"] for name in names])
        await line.settled()
        assert sum(sizes) == 30
        assert len(sizes) <= 3, sizes
    assert await line.dead() == []
    await line.stop()


def _noted(transaction: SqliteTransaction, sizes: list[int], note: Any, places: list[Any]) -> None:
    """Count how many suspects are noted at once."""
    sizes.append(len(places))
    note(transaction, places)


async def test_what_kills_the_process_is_found_among_many_after_five_kills(path: Path) -> None:
    """ARCHITECTURE 3: the group it is in shrinks with each kill, and everybody else gets an outcome."""
    line = Line(path)
    killing = Killing()
    with killing.armed():
        await line.start()
        names = [await line.command("start", "culprit" if n == 60 else None, controller_id="c", goal=str(n)) for n in range(120)]
        for life in range(1, 6):
            await killing.reached.wait()
            killing.drop()
            await line.kill()
            killing.rearm()
            await line.start()
            suspects = line.services.consumers[0]._suspects
            assert max(map(suspects.begun, range(121)), default=0) in {life, 0}
        await line.settled()
    assert [(await line.outcome(name))["ok"] for name in names if name != "culprit"] == [True] * 119
    assert [letter.subject for letter in await line.dead()] == ["taskflow.dlq.poison"]
    await line.stop()


async def test_what_two_consumers_had_in_hand_at_a_kill_is_counted_for_both(path: Path) -> None:
    """They share a stream: what one of them notes must not be forgotten by the other, nor taken for its own."""
    line = Line(path)
    killing = Killing()
    with killing.armed():
        await line.start()
        early = [f"c-{n}" for n in range(60)]
        for n, correlation_id in enumerate(early):
            await line.command("start", "culprit" if n == 30 else None, controller_id="c", goal=str(n))
            await line.reply({}, correlation_id)
        for life in range(1, 6):
            await killing.reached.wait()
            killing.drop()
            await line.kill()
            killing.rearm()
            await line.start()
            assert line.services.consumers[0]._suspects.begun(61) in {life, 0}
        await line.settled()
    assert [letter.subject for letter in await line.dead()] == ["taskflow.dlq.poison"]
    counts = await line.store.counts()
    assert (counts["inbox.applied"], counts["held"]) == (59, 60)
    await line.stop()


class Killing:
    """A message that kills the process in the transaction in which it is decided."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self._dropped = threading.Event()

    def drop(self) -> None:
        self._dropped.set()

    def rearm(self) -> None:
        self.reached.clear()
        self._dropped.clear()

    @contextlib.contextmanager
    def armed(self) -> Iterator[None]:
        save, loop = SqliteTransaction.save, asyncio.get_running_loop()

        def saved(transaction: SqliteTransaction, batch: Batch) -> None:
            if any(row.key == "culprit" and row.outcome == "applied" for row in batch.inbox):
                loop.call_soon_threadsafe(self.reached.set)
                self._dropped.wait()
                raise asyncio.CancelledError
            save(transaction, batch)

        with patch.object(SqliteTransaction, "save", saved):
            try:
                yield
            finally:
                self._dropped.set()


async def test_a_new_message_in_the_place_of_one_that_failed_has_not_failed(path: Path) -> None:
    """A stream that is made again counts from 1 once more."""
    async with living(path) as line:
        consumer = line.services.consumers[0]
        old = Delivery(subject="s", headers={}, body=b"", stream="TASKFLOW_IN", seq=1, arrived_us=1, attempt=1, token="")
        for _ in range(4):
            consumer._retry(old, "start", ValueError("a defect"))
        assert consumer._begun_before(old) == 4
        assert consumer._begun_before(msgspec.structs.replace(old, arrived_us=2)) == 0


async def test_a_graceful_stop_makes_nobody_a_suspect(path: Path) -> None:
    """ARCHITECTURE 3: attempts are counted after an unclean stop only, also for what was given back at the stop."""
    line = Line(path)
    await line.start()
    await line.done("start", controller_id="c", goal="g")
    line.services.consumers[0]._read = None  # type: ignore[assignment]  # every message fails now
    await line.command("start", "given-back", controller_id="c", goal="g")
    await line.tried(2)
    assert line.floor == 1
    await line.stop()
    await line.start()
    assert line.services.consumers[0]._suspects.up_to == 0
    assert (await line.outcome("given-back"))["ok"]
    await line.stop()


async def test_messages_sent_while_no_worker_runs_are_done_by_the_next_one(path: Path) -> None:
    """SEMANTICS 7: messages lost while the worker is down (core NATS)."""
    line = Line(path)
    await line.start()
    flow_id = await line.parked()
    await line.stop()
    await line.reply({"n": 1})
    started = await line.command("start", controller_id="c", goal="g")
    await line.start()
    assert (await line.outcome(started))["ok"]
    await line.settled()
    assert (await line.flow(flow_id)).state_json["resume_event"] == {"n": 1}
    await line.stop()


async def test_a_reply_that_came_before_its_deadline_wins_although_the_worker_was_away(path: Path) -> None:
    """SEMANTICS R9: the backlog is decided before overdue deadlines fire."""
    line = Line(path)
    await line.start()
    answered, silent = await line.parked("c-1", timeout="10s"), await line.parked("c-2", timeout="10s")
    await line.stop()
    line.clock.advance(seconds=5)
    await line.reply({"n": 1})
    line.clock.advance(seconds=60)
    await line.start()
    await eventually(lambda: _is_running(line, silent))
    assert (await line.flow(answered)).state_json["resume_event"] == {"n": 1}
    assert (await line.flow(silent)).state_json["resume_event"] == {"timed_out": True}
    await line.stop()


async def _is_running(line: Line, flow_id: str) -> bool:
    return (await line.flow(flow_id)).status is FlowStatus.RUNNING


async def test_timers_do_not_wait_for_a_backlog_that_never_ends(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SEMANTICS R9: bounded by `startup_drain`."""
    line = Line(path)
    await line.start()
    silent = await line.parked("c-2", timeout="10s")
    await line.stop()
    await line.reply({"n": 1})
    line.clock.advance(seconds=60)
    monkeypatch.setattr(consumer.Consumer, "_room", lambda _: 0)
    await line.start(startup_drain=0.05)
    await eventually(lambda: _is_running(line, silent))
    assert line.floor < line.broker.streams["TASKFLOW_IN"].last_seq
    await line.stop()


@contextlib.contextmanager
def paused(line: Line) -> Iterator[None]:
    """Have the broker store messages and deliver none, as a paused consumer does."""
    states = [line.broker.consumer(consumer._source) for consumer in line.services.consumers]
    with contextlib.ExitStack() as pauses:
        for state in states:
            pauses.enter_context(patch.object(state, "deliver", lambda _now: None))
        yield
    line.broker.tick()


async def test_a_deadline_waits_for_a_reply_that_the_broker_stored_before_it(path: Path) -> None:
    """SEMANTICS R9: at all times, not at the start only; with nothing pending it waits for nothing."""
    async with living(path) as line:
        answered, silent = await line.parked("c-1", timeout="10s"), await line.parked("c-2", timeout="20s")
        await line.settled()
        with paused(line):
            line.clock.advance(seconds=5)
            await line.reply({"n": 1})
            line.clock.advance(seconds=5.5)
            await line.services.waits.tick()
            assert not await _is_running(line, answered)
        await eventually(lambda: _is_running(line, answered))
        assert (await line.flow(answered)).state_json["resume_event"] == {"n": 1}
        await line.settled()
        line.clock.advance(seconds=10)
        assert (await line.services.waits.tick()).resumed == 1
        assert (await line.flow(silent)).state_json["resume_event"] == {"timed_out": True}


async def test_a_reply_in_time_wins_though_a_flood_of_commands_stands_before_it(path: Path) -> None:
    """SEMANTICS R9: the commands are another agent's, and none of them is decided before the deadline."""
    async with living(path) as line:
        answered, silent = await line.parked("c-1", timeout="10s"), await line.parked("c-2", timeout="10s")
        await line.settled()
        commands = line.broker.consumer(line.services.consumers[0]._source)
        with patch.object(commands, "deliver", lambda _now: None):
            flood = [await line.command("start", controller_id="mallory", goal=str(n)) for n in range(1000)]
            line.clock.advance(seconds=5)
            await line.reply({"n": 1})
            await eventually(lambda: _is_running(line, answered))
            line.clock.advance(seconds=5)

            async def is_over() -> bool:
                """Let time act; the reply may be committed and not settled yet."""
                await line.services.waits.tick()
                return await _is_running(line, silent)

            await eventually(is_over)  # no reply is undecided, so its deadline waits for nothing
            assert commands.backlog().pending == len(flood)
        assert (await line.flow(answered)).state_json["resume_event"] == {"n": 1}
        assert (await line.flow(silent)).state_json["resume_event"] == {"timed_out": True}


async def test_a_reply_that_is_in_hand_is_not_decided_yet(path: Path) -> None:
    """SEMANTICS R9: a deadline after it waits for its commit."""
    async with living(path) as line:
        await line.parked("c-1", timeout="10s")
        await line.settled()
        (_, consumer), gate = line.services.consumers, Gate()
        line.clock.advance(seconds=5)
        arrived = line.clock.us
        with gate.closed():
            await line.reply({"n": 1})
            await gate.reached.wait()
            line.clock.advance(seconds=1)
            assert await consumer.decided_until() == arrived
            gate.open()
        await line.settled()
        assert await consumer.decided_until() == line.clock.us


async def test_a_deadline_waits_no_longer_than_startup_drain_and_timers_not_at_all(path: Path) -> None:
    """SEMANTICS R9."""
    async with living(path) as line:
        silent, other = await line.parked("c-1", timeout="10s"), await line.started()
        at = rfc3339(line.clock.us + 10_000_000)
        assert (await line.done("wait", flow_id=other, wait_condition={"kind": "timer", "at": at}))["ok"]
        await line.settled()
        with paused(line):
            await line.reply({"n": 1}, "nobody's")
            line.clock.advance(seconds=14.9)
            await line.services.waits.tick()
            assert (await _is_running(line, silent), await _is_running(line, other)) == (False, True)
            line.clock.advance(seconds=0.2)
            await line.services.waits.tick()
            assert await _is_running(line, silent)


async def test_a_deadline_waits_while_the_broker_does_not_say_what_it_has(path: Path) -> None:
    """SEMANTICS R9: a reply may lie there since before the connection broke."""
    async with living(path) as line:
        flow_id = await line.parked("c-1", timeout="10s")
        await line.settled()
        line.bus.disconnect()
        line.clock.advance(seconds=5)
        await line.reply({"n": 1})
        line.clock.advance(seconds=6)
        await line.services.waits.tick()
        assert not await _is_running(line, flow_id)
        line.bus.reconnect()
        await eventually(lambda: _is_running(line, flow_id))
        assert (await line.flow(flow_id)).state_json["resume_event"] == {"n": 1}


async def test_once_a_consumer_is_mended_only_what_has_no_outcome_is_asked_for_again(path: Path) -> None:
    """RELIABILITY 3, row 37: with `max_deliver` the broker may have given up on a message, and on no other."""
    async with living(path) as line:
        await line.done("start", controller_id="k", goal="first")
        await line.settled()
        source = line.services.consumers[0]._source
        state, given_up = line.broker.consumer(source), line.broker.streams["TASKFLOW_IN"].last_seq + 1
        with paused(line):
            name = await line.command("start", controller_id="k", goal="given up")
            state._next += 1  # handed out until it was given up, and never settled
        rewound: list[int | None] = []
        with patch.object(line.bus, "take_repaired", lambda: (source,)), patch.object(line.bus, "rewind", _noting(line, rewound)):
            await line.services.inspector.inspect()
        assert (await line.outcome(name))["ok"]
        assert rewound == [given_up]
        rewound.clear()
        await line.settled()
        with patch.object(line.bus, "take_repaired", lambda: (source,)), patch.object(line.bus, "rewind", _noting(line, rewound)):
            await line.services.inspector.inspect()
        assert rewound == [], "everything has its outcome"


def _noting(line: Line, rewound: list[int | None]) -> Callable[..., Awaitable[bool]]:
    """Return a `rewind` that notes where to."""
    real = line.bus.rewind

    async def rewind(source: ConsumerSpec, to: int | None = None) -> bool:
        rewound.append(to)
        return await real(source, to)

    return rewind


async def test_a_worker_whose_consumer_is_adopted_by_another_database_ends(path: Path) -> None:
    """SEMANTICS O9."""
    async with living(path) as line:
        source = line.services.consumers[0]._source
        config = line.broker.consumer(source).config
        config["metadata"] = {**config["metadata"], "taskflow-database": "another"}
        with pytest.raises(ConsumerTaken, match="another"):
            await line.services.inspector.inspect()


# --- the end


async def test_a_stop_publishes_everything_that_was_committed(path: Path) -> None:
    """CONTRACT 7: finish what is in hand, publish what is committed, close; also what was committed a moment ago."""
    line = Line(path)
    published = 0
    for turn in range(10):
        await line.start()
        for n in range(turn + 1):
            await line.command("start", controller_id="c", goal=str(n))
        await eventually(lambda: line.services.consumers[0].in_hand > 0 or line.floor == line.broker.streams["TASKFLOW_IN"].last_seq)
        await line.stop()
        committed = line.floor
        published = len(await line.events())
        assert published == 2 * committed, turn
    assert published > 0


async def test_a_worker_whose_connection_is_lost_for_good_ends_and_leaves_nothing_locked(path: Path) -> None:
    """CONTRACT 7: exit 69, not a hang, however busy it is."""
    line = Line(path)
    await line.start()
    for n in range(200):
        await line.command("start", controller_id="c", goal=str(n))
    await eventually(lambda: line.services.consumers[0].in_hand > 0)
    line.bus.lose("closed by a test")
    with pytest.raises(BaseExceptionGroup) as ended:
        await line.end()
    assert "NATS is lost for good" in str(ended.value.exceptions[0])
    await line.start()
    await line.settled()
    assert (await line.store.counts())["flows.running"] == 200
    await line.stop()


async def test_nothing_is_left_behind_by_a_life(path: Path) -> None:
    """I-28: tasks flat."""
    before = len(asyncio.all_tasks())
    line = Line(path)
    for _ in range(3):
        await line.start()
        await line.done("start", controller_id="c", goal="g")
        await line.stop()
        for _ in range(5):
            await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == before


async def test_a_store_that_is_full_when_the_suspects_are_noted_ends_the_start_with_what_to_do(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = Line(path)
    await line.start()
    gate = Gate()
    with gate.closed():
        name = await line.command("start", controller_id="c", goal="g")
        await gate.reached.wait()
        gate.drop()
        await line.kill()

    def full(*_: object, **__: object) -> dict[int, int]:
        raise Unavailable("the database cannot take the change now: database or disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(SqliteTransaction, "suspects", full)
        with pytest.raises(BaseExceptionGroup) as ended:
            await line.start()
    (refusal,) = ended.value.exceptions
    assert isinstance(refusal, StoreBroken)
    assert "make room" in str(refusal)
    await line.bus.close()
    await line.store.close()
    await line.start()
    assert (await line.outcome(name))["ok"]
    await line.stop()


async def test_a_full_store_is_not_ready_also_where_only_requests_find_out_and_is_ready_again_by_itself(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise Unavailable("the database cannot take the change now: database or disk is full")

    line = Line(path)
    await line.start()
    probes = line.services.probes

    def store() -> bool:
        (check,) = [check for check in probes.ready() if check.name == "store"]
        return check.ok

    with monkeypatch.context() as patched:
        patched.setattr(SqliteTransaction, "save", full)
        assert store()
        with pytest.raises(Unavailable):
            await FlowManager(line.services.engine).create_managed(an_input())
        assert not store()
    await eventually(store)
    await line.stop()
