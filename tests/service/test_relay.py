"""The relay (CONTRACT 4, I-20 to I-24): committed rows only, in order, without gaps, byte-identical when repeated, bounded in memory."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from nats_taskflow.bus.memory.bus import MemoryBroker
from nats_taskflow.bus.port import OutgoingMessage, Published, StreamSpec
from nats_taskflow.bus.stream_rules import stream_config
from nats_taskflow.doors.flow_manager import StepObservation
from nats_taskflow.flow.lifecycle import FlowStepStatus
from nats_taskflow.observe.metrics import Metrics
from nats_taskflow.observe.probes import WorkerProbes
from nats_taskflow.observe.recorder import MetricsRecorder
from nats_taskflow.services import ordered_publisher, relay
from nats_taskflow.services.outbox import events_of_batch, read_events
from nats_taskflow.services.outbox_message import OutboxMessage
from nats_taskflow.services.relay import Relay
from nats_taskflow.wire.headers import MSG_ID
from nats_taskflow.wire.subjects import Subjects
from tests.eventually import eventually
from tests.running import Running, an_input, running
from tests.service.acting import started
from tests.service.line import Gate, Line, SpyingBus, living, sequences

EVT = StreamSpec(name="TASKFLOW_EVT", subjects=("taskflow.evt.>",), inbound=False, max_age=86400.0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "taskflow.db"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ordered_publisher, "_RETRY_FIRST", 0.002)
    monkeypatch.setattr(ordered_publisher, "_RETRY_LAST", 0.02)
    monkeypatch.setattr(ordered_publisher, "_SINGLES_FIRST", 0.002)
    monkeypatch.setattr(ordered_publisher, "_SINGLES_LAST", 0.02)
    monkeypatch.setattr(relay, "_MARK_EVERY", 0.01)
    monkeypatch.setattr(relay, "_TRY_AGAIN", 0.3)


@contextlib.asynccontextmanager
async def relaying(run: Running, bus: SpyingBus, *, window: int = 1024, chunk: int = 64) -> AsyncIterator[Relay]:
    """A relay of the events of one engine."""
    await bus.open()
    await bus.prepare((EVT,), ())
    read = read_events(run.store, Subjects())
    made = Relay("events", bus, run.engine, read=read, adds=lambda batch: bool(batch.events), window=window, chunk=chunk)
    task = asyncio.create_task(made.run())
    yield made
    task.cancel()
    await asyncio.wait({task})


async def busy(run: Running, flows: int, changes: int) -> list[str]:
    """Make events: a few flows that change often."""
    made = [await started(run) for _ in range(flows)]
    for n in range(changes):
        await asyncio.gather(*[run.manager.update_state(flow.id, {"n": n}) for flow in made])
    return [flow.id for flow in made]


async def test_nothing_is_published_before_it_is_committed(path: Path) -> None:
    """I-21: not even asked of the broker."""
    async with running(str(path)) as run, relaying(run, SpyingBus(MemoryBroker())) as made:
        gate = Gate()
        with gate.closed():
            changing = asyncio.ensure_future(run.manager.create_managed(an_input()))
            await gate.reached.wait()
            await eventually(lambda: made.idle)
            assert _bus(made).asked == []
            gate.open()
            flow = await changing
            await eventually(lambda: made.idle)
        assert [message.msg_id for message in _bus(made).asked] == [f"{flow.id}:1"]


async def test_each_flow_keeps_its_order_whatever_the_broker_loses_or_refuses(path: Path) -> None:
    """I-22: first occurrences 1, 2, 3 …; a repeat only of what was there, byte for byte."""
    bus, chance = SpyingBus(MemoryBroker()), random.Random(7)
    async with running(str(path)) as run, relaying(run, bus, window=16) as made:
        making = asyncio.ensure_future(busy(run, 5, 40))
        while not making.done():
            bus.fail_publishes(3, refused=chance.random() < 0.5, stored=chance.random() < 0.5)
            await asyncio.sleep(0)
            if chance.random() < 0.2:
                bus.disconnect()
                await asyncio.sleep(0)
                bus.reconnect()
            await asyncio.sleep(0.001)
        flows = await making
        bus.reconnect()
        bus._failures.clear()
        await eventually(lambda: made.idle)
        stored = await bus.client().messages("TASKFLOW_EVT")
        assert sequences(stored) == {flow_id: list(range(1, 43)) for flow_id in flows}
        said: dict[str, set[bytes]] = {}
        for message in bus.asked:
            said.setdefault(message.msg_id, set()).add(message.body)
        assert len(bus.asked) > len(said), "something was repeated"
        assert all(len(bodies) == 1 for bodies in said.values())


async def test_many_events_go_out_together_in_the_order_of_their_commits(path: Path) -> None:
    """I-22: one acknowledgement, and one sync of the broker's disk, for hundreds."""
    bus = SpyingBus(MemoryBroker())
    async with running(str(path)) as run:
        await busy(run, 30, 40)
        async with relaying(run, bus) as made:
            await eventually(lambda: made.idle)
        assert sum(bus.batches) == 30 * 42
        assert len(bus.batches) <= 30 * 42 / 60
        stored = await bus.client().messages("TASKFLOW_EVT")
        committed = await run.store.unpublished_events(0, 2000)
        assert [message.headers[MSG_ID] for message in stored] == [f"{row.flow_id}:{row.event.seq}" for row in committed if row.event]


class SlowBus(SpyingBus):
    """Tells of no batch that it is stored before `told` is set."""

    def __init__(self, broker: MemoryBroker) -> None:
        super().__init__(broker)
        self.told = asyncio.Event()

    def publish_all(self, messages: Sequence[OutgoingMessage]) -> asyncio.Future[Published]:
        return asyncio.ensure_future(self._tell(super().publish_all(messages)))

    async def _tell(self, answer: asyncio.Future[Published]) -> Published:
        await self.told.wait()
        return await answer


async def test_where_more_waits_than_a_batch_takes_agents_take_turns(path: Path) -> None:
    """RELIABILITY 9: what one agent has much of delays no other's events."""
    bus = SlowBus(MemoryBroker())
    async with running(str(path)) as run:
        for number in range(60):
            owner = f"agent:mallory:session:{number}"
            await run.manager.create_managed(an_input(owner_session_key=owner, state_json={"text": "x" * 60_000}))
        hers = [an_input(owner_session_key=f"agent:kate:session:{number}") for number in range(ordered_publisher._FEW)]
        made_for_her = [await run.manager.create_managed(one) for one in hers]
        async with relaying(run, bus) as made:
            await eventually(lambda: made.in_flight == 60 + len(hers))
            bus.told.set()
            await eventually(lambda: made.idle)
        first, second, *_ = bus.batches
        assert first < 20, "what was read when it had to begin"
        batch = bus.asked[first : first + second]
        last = [message.msg_id for message in batch[-len(hers) :]]
        assert last == [f"{flow.id}:1" for flow in made_for_her], "hers are committed last, and go with the first batch that can have them"
        assert sum(len(message.body) for message in batch) < 1024 * 1024 + 61_000


async def test_the_events_of_an_agent_with_few_wait_for_no_batch_of_anothers(path: Path) -> None:
    """RELIABILITY 9: beside 25,000 commands, a timer's event waited for the batch under way and went with five hundred in the next."""
    bus = SlowBus(MemoryBroker())
    async with running(str(path)) as run, relaying(run, bus) as made:
        flood = [an_input(owner_session_key=f"agent:mallory:session:{number}") for number in range(60)]
        await asyncio.gather(*[run.manager.create_managed(one) for one in flood])
        await eventually(lambda: bus.batches and made.in_flight == sum(bus.batches))
        before, batches = len(bus.asked), list(bus.batches)
        hers = await run.manager.create_managed(an_input(owner_session_key="agent:kate:session:main"))
        await eventually(lambda: len(bus.asked) > before and made.in_flight == sum(batches))
        assert [message.msg_id for message in bus.asked[before:]] == [f"{hers.id}:1"], "it has gone, and nothing else has"
        await asyncio.gather(*[run.manager.create_managed(one) for one in flood])
        for number in range(ordered_publisher._FEW):
            await run.manager.update_state(hers.id, {"n": number})
        bus.told.set()
        await eventually(lambda: made.idle)
        assert len(bus.batches) > len(batches), "and what mallory has much of goes in batches as before"
        stored = [message.headers[MSG_ID] for message in await bus.client().messages("TASKFLOW_EVT")]
        of_hers = [one for one in stored if one.startswith(hers.id)]
        assert of_hers == [f"{hers.id}:{seq}" for seq in range(1, ordered_publisher._FEW + 2)]


async def test_where_many_agents_have_few_events_each_they_go_out_together(path: Path) -> None:
    bus = SpyingBus(MemoryBroker())
    async with running(str(path)) as run:
        for number in range(64):
            await run.manager.create_managed(an_input(owner_session_key=f"agent:a{number}:session:main"))
        async with relaying(run, bus) as made:
            await eventually(lambda: made.idle)
    assert sum(bus.batches) == 64
    assert len(bus.asked) == 64


async def test_few_events_go_out_one_by_one(path: Path) -> None:
    bus = SpyingBus(MemoryBroker())
    async with running(str(path)) as run, relaying(run, bus) as made:
        await started(run)
        await eventually(lambda: made.idle and len(bus.asked) == 2)
        assert bus.batches == []


class FickleBus(SpyingBus):
    """Fails now and then, in a way that `chance` draws at each publish; None: not at all."""

    def __init__(self, broker: MemoryBroker, seed: int) -> None:
        super().__init__(broker)
        self.chance: random.Random | None = random.Random(seed)

    def publish(self, message: OutgoingMessage) -> asyncio.Future[Published]:
        self._draw()
        return super().publish(message)

    def publish_all(self, messages: Sequence[OutgoingMessage]) -> asyncio.Future[Published]:
        self._draw()
        return super().publish_all(messages)

    def _draw(self) -> None:
        if self.chance is None:
            return
        if self.chance.random() < 0.3:
            self.fail_publishes(1, refused=self.chance.random() < 0.5, stored=self.chance.random() < 0.5)
        if self.chance.random() < 0.02:
            self.disconnect()
            asyncio.get_running_loop().call_soon(self.reconnect)

    def calm_down(self) -> None:
        """Fail no more."""
        self.chance = None
        self._failures.clear()


async def test_batches_that_fail_in_every_way_leave_no_gap_and_no_other_order(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """I-22, with flows that change many times within a batch; some are set aside meanwhile, and tried again once."""
    monkeypatch.setattr(relay, "_TRY_AGAIN", 3600.0)
    bus = FickleBus(MemoryBroker(), seed=11)
    async with running(str(path)) as run:
        flows = await busy(run, 12, 30)
        async with relaying(run, bus, window=100) as made:
            flows += await busy(run, 12, 60)
            bus.calm_down()
            await eventually(lambda: made._is_all_sent)
            made.try_again()
            await eventually(lambda: made.idle)
        stored = await bus.client().messages("TASKFLOW_EVT")
        found = sequences(stored)
        assert {flow_id: len(found[flow_id]) for flow_id in flows} == dict.fromkeys(flows[:12], 32) | dict.fromkeys(flows[12:], 62)
        assert all(seqs == list(range(1, len(seqs) + 1)) for seqs in found.values())
        assert len(bus.batches) > 10
        assert len(bus.asked) > len(stored), "something was repeated"
        assert len({(message.msg_id, message.body) for message in bus.asked}) == len({message.msg_id for message in bus.asked})


async def test_a_lane_that_was_set_aside_is_tried_once_and_then_read_on_until_it_has_caught_up(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However far the others have come meanwhile: one refusal that is over costs a flow no wait for each chunk of the journal."""
    monkeypatch.setattr(relay, "_TRY_AGAIN", 3600.0)
    bus = SpyingBus(MemoryBroker())
    async with running(str(path)) as run, relaying(run, bus, chunk=4) as made:
        poison = (await started(run)).id
        await eventually(lambda: made.idle)
        bus.refuse = poison
        for n in range(10):
            await run.manager.update_state(poison, {"n": n})
            await busy(run, 2, 2)
        await eventually(lambda: made._is_all_sent and made._publisher.set_aside)
        bus.refuse = ""
        made.try_again()
        await eventually(lambda: made.idle)
        assert sequences(await bus.client().messages("TASKFLOW_EVT"))[poison] == list(range(1, 13))


async def test_what_a_lane_that_is_tried_again_finds_beyond_what_was_read_is_sent_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """I-22: it was lined up again when it was read in its turn."""
    monkeypatch.setattr(ordered_publisher, "_OWN_FAULT", 1)
    monkeypatch.setattr(relay, "_TRY_AGAIN", 3600.0)
    bus, reading, go_on = SpyingBus(MemoryBroker()), asyncio.Event(), asyncio.Event()
    async with running(str(path)) as run:
        await bus.open()
        await bus.prepare((EVT,), ())
        read = read_events(run.store, Subjects())

        async def gated(after: int, limit: int) -> list[OutboxMessage]:
            letters = await read(after, limit)
            if after == 2 and letters:  # the third row, in its turn
                reading.set()
                await go_on.wait()
            return letters

        made = Relay("events", bus, run.engine, read=gated, adds=lambda batch: bool(batch.events))
        bus.refuse = "taskflow.evt."
        task = asyncio.create_task(made.run())
        flow = await started(run)
        await eventually(lambda: made.set_aside)
        bus.refuse = ""
        await run.manager.update_state(flow.id, {"n": 1})
        await reading.wait()
        made.try_again()
        await eventually(lambda: made.stored >= 2)
        go_on.set()
        await eventually(lambda: made.idle)
        stored = [message.headers[MSG_ID] for message in await bus.client().messages("TASKFLOW_EVT")]
        assert stored == [f"{flow.id}:{seq}" for seq in (1, 2, 3)]
        assert made.stored == 3
        task.cancel()


async def test_after_a_crash_what_is_stored_goes_one_by_one_and_then_batches_again(path: Path) -> None:
    """A batch with one message that the broker has is refused as a whole."""
    bus = SpyingBus(MemoryBroker())
    async with running(str(path)) as run:
        await busy(run, 20, 10)
        async with relaying(run, bus, window=100) as made:
            await eventually(lambda: made.idle)
    before, bus = len(bus.asked), SpyingBus(bus.broker)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE published SET n = 0")
    connection.close()
    async with running(str(path)) as run, relaying(run, bus, window=100) as made:
        await eventually(lambda: made.idle)
        assert len({message.msg_id for message in bus.asked}) == before
        refused = len(bus.batches)
        assert refused
        await busy(run, 20, 10)
        await eventually(lambda: made.idle)
        assert sum(bus.batches[refused:]) > 100
        stored = sequences(await bus.client().messages("TASKFLOW_EVT"))
        assert len(stored) == 40
        assert all(seqs == list(range(1, 13)) for seqs in stored.values())


class CountingBus(SpyingBus):
    """Remembers what was asked to be published by itself."""

    def __init__(self, broker: MemoryBroker) -> None:
        super().__init__(broker)
        self.alone: set[str] = set()

    def publish(self, message: OutgoingMessage) -> asyncio.Future[Published]:
        self.alone.add(message.msg_id)
        return super().publish(message)


async def test_after_a_crash_what_is_not_stored_goes_in_batches_at_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No time is waited for, in which all would go one by one."""
    monkeypatch.setattr(ordered_publisher, "_SINGLES_FIRST", 3600.0)
    bus = SpyingBus(MemoryBroker())
    async with running(str(path)) as run:
        await busy(run, 20, 10)
        async with relaying(run, bus) as made:
            await eventually(lambda: made.idle)
        await busy(run, 40, 10)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE published SET n = 0")
    connection.close()
    new = CountingBus(bus.broker)
    async with running(str(path)) as run, relaying(run, new) as made:
        await eventually(lambda: made.idle)
    found = sequences(await bus.client().messages("TASKFLOW_EVT"))
    assert len(found) == 60
    assert all(seqs == list(range(1, 13)) for seqs in found.values())
    assert len(new.alone - {message.msg_id for message in bus.asked}) <= 40 * 12 / 4, "of what is new, most goes in batches"


async def test_a_stream_without_batches_gets_everything_one_by_one_and_it_is_said_once(path: Path) -> None:
    bus = SpyingBus(MemoryBroker())
    bus.broker.create_stream({**stream_config(EVT, batches=False), "max_msgs": 10**6})
    async with running(str(path)) as run:
        flows = await busy(run, 20, 20)
        with capture_logs() as logs:
            async with relaying(run, bus, window=100) as made:
                await eventually(lambda: made.idle)
        assert sequences(await bus.client().messages("TASKFLOW_EVT")) == {flow_id: list(range(1, 23)) for flow_id in flows}
        said = [(line["event"], line["log_level"]) for line in logs if line["log_level"] != "debug"]
        assert said == [("one_by_one", "info")]


async def test_after_a_long_outage_it_catches_up_with_a_bounded_window(path: Path) -> None:
    """I-28: memory is bounded by the window, not by the backlog."""
    bus = SpyingBus(MemoryBroker())
    async with running(str(path)) as run:
        flows = await busy(run, 20, 20)
        most = 0
        async with relaying(run, bus, window=32) as made:
            bus.disconnect()
            await eventually(lambda: made.in_flight == 32)
            await busy(run, 1, 50)
            assert made.in_flight == 32
            bus.reconnect()
            while not made.idle:
                most = max(most, made.in_flight)
                await asyncio.sleep(0)
            assert most <= 32
        found = sequences(await bus.client().messages("TASKFLOW_EVT"))
        assert {flow_id: found[flow_id] for flow_id in flows} == {flow_id: list(range(1, 23)) for flow_id in flows}
        assert len(found) == 21


async def test_it_is_not_idle_while_it_reads_what_was_committed(path: Path) -> None:
    """CONTRACT 7: a stop that asks at that moment must not go without those rows."""
    async with running(str(path)) as run:
        bus, reading, read_on = SpyingBus(MemoryBroker()), asyncio.Event(), asyncio.Event()
        await bus.open()
        await bus.prepare((EVT,), ())
        read = read_events(run.store, Subjects())

        async def slowly(after: int, limit: int) -> list[OutboxMessage]:
            reading.set()
            await read_on.wait()
            return await read(after, limit)

        await started(run)
        made = Relay("events", bus, run.engine, read=slowly, adds=lambda batch: bool(batch.events))
        task = asyncio.create_task(made.run())
        await reading.wait()
        assert not made.idle
        draining = asyncio.create_task(made.drain(5))
        await asyncio.sleep(0)
        read_on.set()
        assert await draining
        assert len(await bus.client().messages("TASKFLOW_EVT")) == 2
        assert await run.store.published("events") == 2
        task.cancel()


async def test_what_is_committed_while_it_reads_is_read_next(path: Path) -> None:
    """I-23: no lost wake-up, which would leave those events until somebody commits again."""
    async with running(str(path)) as run:
        bus, read_it, go_on = SpyingBus(MemoryBroker()), asyncio.Event(), asyncio.Event()
        await bus.open()
        await bus.prepare((EVT,), ())
        read = read_events(run.store, Subjects())

        async def lingering(after: int, limit: int) -> list[OutboxMessage]:
            letters = await read(after, limit)
            read_it.set()
            await go_on.wait()
            return letters

        made = Relay("events", bus, run.engine, read=lingering, adds=lambda batch: bool(batch.events))
        task = asyncio.create_task(made.run())
        await read_it.wait()
        flow = await started(run)
        go_on.set()
        await eventually(lambda: made.idle and len(bus.asked) == 2)
        assert [message.msg_id for message in bus.asked] == [f"{flow.id}:1", f"{flow.id}:2"]
        task.cancel()


async def test_events_made_from_the_batch_are_byte_for_byte_those_that_are_read(path: Path) -> None:
    """I-22: after a crash they are read from the database and published again, and a repeat says exactly what the first said."""
    async with running(str(path)) as run:
        made: list[OutboxMessage] = []
        run.engine.listen(lambda batch: made.extend(events_of_batch(Subjects())(batch)))
        flow = await started(run)
        awkward = {"float": 1e-7, "big": 2**63, "deep": [{"ü": "\u2028"}, None, True], "huge": 1e300, "zero": -0.0}
        await run.manager.update_state(flow.id, awkward)
        await run.manager.record_step_observation(StepObservation(flow_id=flow.id, run_id="r", task="t", status=FlowStepStatus.RUNNING))
        await run.manager.fail(flow.id, "because")
        assert len(made) == 5
        assert made == await read_events(run.store, Subjects())(0, 100)


async def test_a_relay_that_has_kept_up_does_not_read_what_was_just_committed(path: Path) -> None:
    """One read of the database fewer for each batch; what was missed is read all the same."""
    async with running(str(path)) as run:
        bus, reads = SpyingBus(MemoryBroker()), list[int]()
        await bus.open()
        await bus.prepare((EVT,), ())
        read = read_events(run.store, Subjects())

        async def counted(after: int, limit: int) -> list[OutboxMessage]:
            reads.append(after)
            return await read(after, limit)

        await started(run)
        made = Relay("events", bus, run.engine, read=counted, adds=lambda batch: bool(batch.events), rows_of=events_of_batch(Subjects()))
        task = asyncio.create_task(made.run())
        await eventually(lambda: made.idle and len(bus.asked) == 2)
        before = len(reads)
        await busy(run, 3, 4)
        await eventually(lambda: made.idle and len(bus.asked) == 2 + 3 * 6)
        assert len(reads) == before
        task.cancel()


async def test_a_drain_is_bounded_and_says_what_it_left(path: Path) -> None:
    """CONTRACT 7: publish what is committed (bounded)."""
    async with running(str(path)) as run, relaying(run, SpyingBus(MemoryBroker())) as made:
        _bus(made).disconnect()
        await started(run)
        assert not await made.drain(0.02)
        assert await run.store.published("events") == 0
        _bus(made).reconnect()
        assert await made.drain(5)


async def test_what_is_published_again_after_a_crash_is_the_same_bytes_under_the_same_id(path: Path) -> None:
    """I-22 and CONTRACT 4."""
    line = Line(path)
    await line.start()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(relay, "_MARK_EVERY", 3600.0)
        for relayed in line.services.relays:
            relayed._marked = 2**60  # what was published is not noted before the kill
        flow_id = await line.parked()
        await line.reply({"é": 1.5})
        await line.settled()
    first = {message.msg_id: message for message in line.bus.asked}
    await line.kill()
    await line.start()
    await line.settled()
    again = {message.msg_id: message for message in line.bus.asked}
    assert set(first) == {f"{flow_id}:{seq}" for seq in range(1, 5)}
    assert again == first
    assert sequences(await line.events()) == {flow_id: [1, 2, 3, 4]}, "the broker knew them by their ids"
    await line.stop()


async def test_what_is_noted_as_published_is_not_read_again(path: Path) -> None:
    """ARCHITECTURE 2: a restart does not begin with the whole journal."""
    line = Line(path)
    await line.start()
    await line.parked()
    await line.stop()
    await line.start()
    await line.settled()
    assert line.bus.asked == []
    await line.stop()


async def test_progress_is_noted_up_to_the_first_gap_only(path: Path) -> None:
    """I-24: a row whose event is not stored by the broker counts as unpublished, whatever was stored after it."""
    async with running(str(path)) as run:
        first, second = await started(run), await started(run)
        bus = SpyingBus(MemoryBroker())
        publish = bus.publish

        def picky(message: object) -> asyncio.Future[object]:
            if getattr(message, "msg_id", "") == f"{first.id}:2":
                bus.fail_publishes(1, refused=True)
            return publish(message)  # type: ignore[arg-type, return-value]  # passed on as it is

        bus.publish = picky  # type: ignore[method-assign, assignment]  # a broker that refuses one of them
        async with relaying(run, bus) as made:
            await eventually(lambda: made.in_flight == 1)
            await made._mark()
            assert await run.store.published("events") == 1
            assert {message.msg_id for message in bus.asked} == {f"{flow.id}:{seq}" for flow in (first, second) for seq in (1, 2)}
            await made._mark()
            assert await run.store.published("events") == 1


async def test_a_journal_entry_that_cannot_be_read_keeps_no_other_event_back(path: Path) -> None:
    """SEMANTICS R13: damage of one row is reported; it neither ends the worker nor stops the outbox."""
    async with running(str(path)) as run:
        bad, good = await started(run), await started(run)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(
            "UPDATE flow_events SET payload_json = '{' WHERE seq = 2 AND flow = (SELECT n FROM flows WHERE id = ?)", (bad.id,)
        )
    connection.close()
    bus = SpyingBus(MemoryBroker())
    async with running(str(path)) as run, relaying(run, bus, window=1) as made:
        await eventually(lambda: made.idle)
        assert sequences(await bus.client().messages("TASKFLOW_EVT")) == {bad.id: [1], good.id: [1, 2]}
        await made._mark()
        assert await run.store.published("events") == 4


async def test_a_dead_letter_whose_headers_cannot_be_read_is_published_without_them(path: Path) -> None:
    """SEMANTICS R13."""
    line = Line(path)
    await line.start()
    await line.stop()
    with closing(sqlite3.connect(path)) as connection, connection:
        values = "('malformed', 'why', 's', 'TASKFLOW_IN', 1, '{', x'ff', 0)"
        connection.execute(f"INSERT INTO dead_letters (reason, message, subject, stream, seq, headers_json, body, at_us) VALUES {values}")  # noqa: S608
    connection.close()
    await line.start()
    await line.settled()
    (letter,) = await line.dead()
    assert (letter.subject, letter.body, letter.headers[MSG_ID]) == ("taskflow.dlq.malformed", b"\xff", "dlq:1")
    await line.stop()


async def test_a_full_event_stream_holds_events_back_and_loses_none(path: Path) -> None:
    """I-23: once there is room they are published, and until then their flows are not pruned."""
    async with living(path) as line:
        stream = line.broker.streams["TASKFLOW_EVT"]
        stream.config |= {"max_bytes": 1, "discard": "new"}
        flow_id = await line.started()
        await eventually(lambda: line.services.relays[0].in_flight == 2)
        assert await line.events() == []
        stream.config["max_bytes"] = -1
        await line.settled()
        assert sequences(await line.events()) == {flow_id: [1, 2]}


async def test_a_broker_that_refuses_everything_is_asked_with_one_message_at_a_time(path: Path) -> None:
    """RELIABILITY 3, rows 37 and 38: not once for each of a thousand flows."""
    bus = SpyingBus(MemoryBroker())
    async with running(str(path)) as run, relaying(run, bus) as made:
        bus.fail_publishes(1_000_000, refused=True)
        flows = await busy(run, 50, 1)
        await eventually(lambda: made.in_flight == 150)
        await eventually(lambda: len(made._publisher._rejected) == 50)
        before = len(bus.asked)
        assert made.trouble == "a test made it fail"
        rounds = 20
        await eventually(lambda: len(bus.asked) >= before + rounds)
        assert len({message.msg_id for message in bus.asked[before : before + rounds]}) == rounds, "it goes round"
        assert len(made._publisher._rejected) >= 49
        bus._failures.clear()
        await eventually(lambda: made.idle)
        assert made.trouble == ""
        assert sequences(await bus.client().messages("TASKFLOW_EVT")) == {flow_id: [1, 2, 3] for flow_id in flows}


async def test_one_message_that_is_refused_for_its_own_sake_holds_back_its_flow_alone(path: Path) -> None:
    bus = SpyingBus(MemoryBroker())
    async with running(str(path)) as run, relaying(run, bus) as made:
        poison = (await started(run)).id
        await eventually(lambda: made.idle)
        bus.refuse = poison
        await run.manager.update_state(poison, {"n": 1})
        flows = await busy(run, 10, 3)

        async def all_others_are_out() -> bool:
            stored = sequences(await bus.client().messages("TASKFLOW_EVT"))
            return [stored.get(flow_id) for flow_id in flows] == [[1, 2, 3, 4, 5]] * len(flows) and stored[poison] == [1, 2]

        await eventually(all_others_are_out)
        await eventually(lambda: made.in_flight == 0)  # the broker has stored them before the relay hears of it
        assert "1 flow" in made.trouble
        bus.refuse = ""
        await eventually(lambda: made.idle)
        assert made.trouble == ""


@pytest.mark.parametrize("before", [True, False], ids=["while others wait", "while nobody else waits"])
async def test_a_try_that_ends_with_its_lane_set_aside_is_followed_by_the_next_one(path: Path, before: bool) -> None:
    """After an outage one message finds out whether the broker takes any: where that one can never go, the others are not forgotten."""
    bus = SpyingBus(MemoryBroker())
    async with running(str(path)) as run, relaying(run, bus) as made:
        bus.disconnect()
        large = (await started(run, state_json={"text": "x" * 5000})).id
        good = [await started(run)] if before else []
        await eventually(lambda: len(made._publisher._rejected) == 1 + len(good) and made._publisher._rejected[0].lane == large)
        bus.max_payload = 4096
        bus.reconnect()
        await eventually(lambda: made._publisher.refused)
        good = good or [await started(run)]
        await eventually(lambda: made._is_all_sent)
        assert sequences(await bus.client().messages("TASKFLOW_EVT")) == {good[0].id: [1, 2]}


async def test_events_that_the_broker_cannot_carry_hold_back_their_flows_alone_and_go_out_once_it_can(path: Path) -> None:
    """RELIABILITY 9: however many flows are stuck, and whatever they go on to say meanwhile."""
    bus = SpyingBus(MemoryBroker())
    async with running(str(path)) as run, relaying(run, bus, window=64) as made:
        large = [(await started(run)).id for _ in range(90)]
        await eventually(lambda: made.idle)
        bus.max_payload = 4096  # lowered while the worker runs
        for flow_id in large:
            await run.manager.update_state(flow_id, {"text": "x" * 5000})
            await run.manager.update_state(flow_id, {"n": 1})
        others = await busy(run, 5, 3)

        async def others_are_out() -> bool:
            stored = sequences(await bus.client().messages("TASKFLOW_EVT"))
            return all(stored.get(flow_id) == [1, 2, 3, 4, 5] for flow_id in others)

        await eventually(others_are_out)
        await eventually(lambda: len(made._publisher.refused) == 90)
        await eventually(lambda: (made.in_flight, made._publisher.pending_bytes) == (0, 0))
        assert "90 flows" in made.trouble
        assert not made.idle
        first = (await run.store.unpublished_events(0, 1000))[180].n
        await eventually(lambda: _is_marked(run, first - 1))
        bus.max_payload = 1 << 20
        more = large[0]
        await run.manager.update_state(more, {"n": 2})
        await eventually(lambda: made.idle)
        stored = sequences(await bus.client().messages("TASKFLOW_EVT"))
        assert stored == {flow_id: [1, 2, 3, 4] for flow_id in large} | {more: [1, 2, 3, 4, 5]} | {f: [1, 2, 3, 4, 5] for f in others}
        assert made.trouble == ""


async def test_flows_that_are_set_aside_have_a_metric_of_their_own(path: Path) -> None:
    bus, metrics = SpyingBus(MemoryBroker()), Metrics()
    async with running(str(path)) as run, relaying(run, bus) as made:
        recorder = MetricsRecorder(metrics)
        probes = WorkerProbes(run.engine, bus, recorder, outlets=[made], flaws=list)

        async def shown() -> float | None:
            recorder.sample(await probes.sample(0.0))
            return metrics.registry.get_sample_value("taskflow_outbox_set_aside")

        bus.refuse = (await started(run)).id
        for _ in range(5):
            await busy(run, 1, 1)
        await eventually(lambda: made.trouble)
        assert await shown() == 1
        bus.refuse = ""
        await eventually(lambda: made.idle)
        assert await shown() == 0


async def _is_marked(run: Running, up_to: int) -> bool:
    """Tell whether exactly this much is noted as published."""
    return await run.store.published("events") == up_to


async def test_a_stop_does_not_wait_for_what_cannot_be_sent_and_the_next_run_has_it(path: Path) -> None:
    bus = SpyingBus(MemoryBroker())
    async with running(str(path)) as run:
        async with relaying(run, bus) as made:
            bus.max_payload = 4096
            flow_id = (await started(run, state_json={"text": "x" * 5000})).id
            await eventually(lambda: made._publisher.refused)
            assert await made.drain(5.0) is False
        assert await run.store.published("events") == 0
        bus.max_payload = 1 << 20
        async with relaying(run, bus) as made:
            await eventually(lambda: made.idle)
            assert sequences(await bus.client().messages("TASKFLOW_EVT")) == {flow_id: [1, 2]}


def _bus(made: Relay) -> SpyingBus:
    bus = made._publisher._bus
    assert isinstance(bus, SpyingBus)
    return bus
