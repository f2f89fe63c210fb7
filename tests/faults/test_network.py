"""The network between worker and broker cuts, stalls, swallows, slows and flaps: nothing is lost, nothing happens twice (rows 19–21)."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from nats_taskflow.bus.nats.server import EmbeddedServer
from tests.conftest import SEED
from tests.e2e import checks
from tests.e2e.stage import EVENTS, TOPIC, Agent, Heard, Stage, encoded, event, in_order, new_id
from tests.eventually import eventually
from tests.faults.disturbing import side_by_side
from tests.faults.load import PARTS, Load
from tests.faults.proxy import DOWN, UP, Cut, Proxy, Way
from tests.faults.readiness import ready, unready
from tests.faults.report import Row
from tests.faults.verdict import verdict
from tests.ports import kept_port
from tests.tiers import SIZE, Rotated, Tests, Tier

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300)]

SIDE_BY_SIDE = 4
Record = Callable[[Row], None]


@asynccontextmanager
async def behind_a_proxy(folder: Path) -> AsyncIterator[tuple[Stage, Proxy]]:
    """Give a stage whose worker reaches the broker through a proxy; agents connect directly."""
    folder.mkdir(exist_ok=True)  # noqa: ASYNC240  nothing runs yet
    server = EmbeddedServer(folder / "nats", kept_port())
    async with Proxy(lambda: server.url) as proxy, Stage(folder, server=server, settings={"TASKFLOW_NATS_URL": proxy.url}) as stage:
        yield stage, proxy


@pytest.fixture
async def proxied(tmp_path: Path) -> AsyncIterator[tuple[Stage, Proxy]]:
    async with behind_a_proxy(tmp_path) as made:
        yield made


async def exchange(kate: Agent, heard: Heard, number: int) -> None:
    """Exchange two messages: a command that parks a flow, and its reply; return when the event of its resumption was heard."""
    flow_id = new_id()
    await kate.cmd("start", {"controller_id": "k", "goal": "g", "flow_id": flow_id}, f"start-{number}")
    await kate.cmd("wait", {"flow_id": flow_id, "wait_condition": event(f"c-{number}")}, f"wait-{number}")
    await kate.reply(TOPIC, f"c-{number}", number, f"reply-{number}")
    await heard.until(lambda: any(m.subject.endswith(f"{flow_id}.resumed") for m in heard.messages), within=30)
    heard.messages.clear()


async def cut_everywhere(folder: Path, share: int, stride: int, rotated: Rotated) -> tuple[int, int, list[float], list[str]]:
    """Cut one exchange after every `stride`th byte of each direction, this share of them; return exchanges, cuts, times and violations."""
    number, back = 0, []
    async with behind_a_proxy(folder) as (stage, proxy):
        kate = await stage.agent()
        async with kate.listening("taskflow.evt.>") as heard:
            await exchange(kate, heard, number)
            before = proxy.passed.copy()
            await exchange(kate, heard, number := number + 1)
            sizes = proxy.passed - before
            for way in Way:
                for after in rotated(range(share * stride, sizes[way], stride * SIDE_BY_SIDE), 3):
                    proxy.cut(Cut(way=way, after=after, reset=bool(after // stride % 2)))
                    began = time.monotonic()
                    await exchange(kate, heard, number := number + 1)
                    if not proxy.armed:
                        back.append(time.monotonic() - began)
                    proxy.disarm()
        bad = await checks.violations(
            stage, kate, accepted=[("kate", f"{verb}-{n}") for n in range(number + 1) for verb in ("start", "wait")]
        )
    return number + 1, proxy.cuts, back, bad


@pytest.mark.scenario("cut-every-byte")
async def test_an_exchange_that_is_cut_after_any_byte_in_either_direction_comes_to_its_one_end(
    tmp_path: Path, record: Record, tier: Tier, rotated: Rotated
) -> None:
    stride = 1 if SIZE is Tests.NIGHTLY else 67
    runs = [cut_everywhere(tmp_path / str(share), share, stride, rotated) for share in range(SIDE_BY_SIDE)]
    results = await asyncio.gather(*runs)
    exchanges, cuts = sum(result[0] for result in results), sum(result[1] for result in results)
    bad = [line for result in results for line in result[3]]
    back = [second for result in results for second in result[2]]
    lost = sum("I-1:" in line or "I-26" in line for line in bad)
    record(Row(scenario="cut-every-byte", seed=SEED, runs=exchanges, faults=cuts, acknowledged=3 * exchanges, lost=lost, back=back))
    assert bad == []
    assert cuts >= tier(quick=12, all=40, nightly=3000)


DEATHS = ("stranded", "swallowed up", "swallowed down", "swallowed both", "frozen down")


@pytest.mark.scenario("dead-path")
async def test_a_path_that_is_dead_without_a_word_is_noticed_and_left(tmp_path: Path, record: Record) -> None:
    """Side by side: most of the time it is waited for somebody to notice."""

    async def case(folder: Path, how: str) -> Row:
        async with behind_a_proxy(folder) as (stage, proxy):
            return await noticed_and_left(stage, proxy, how)

    for row in (await side_by_side(tmp_path, DEATHS, case)).values():
        record(row)


async def noticed_and_left(stage: Stage, proxy: Proxy, how: str) -> Row:
    """Let the path die, and see the worker do its work again: on another one, or on the same once it lives."""
    kate = await stage.agent()
    async with kate.listening("taskflow.evt.>") as heard:
        await exchange(kate, heard, 0)
        began = time.monotonic()
        if how == "stranded":
            proxy.strand()
        elif how == "frozen down":
            proxy.freeze(DOWN)
        else:
            proxy.swallowed |= {UP, DOWN} if how.endswith("both") else {Way(how.removeprefix("swallowed "))}
        flows = [new_id() for _ in range(200)]
        await in_order([partial(kate.cmd, "start", {"controller_id": "k", "goal": "g", "flow_id": flow}, f"s-{flow}") for flow in flows])
        noticed = 0.0
        if how == "stranded":  # a new connection works at once
            await eventually(lambda: proxy.connections > 1, within=25)
            noticed = time.monotonic() - began
        else:
            await unready(stage, "nats failed", within=25)
            noticed = time.monotonic() - began
            proxy.heal()
            began = time.monotonic()
        await heard.until(lambda: len({m.subject for m in heard.messages if m.subject.endswith("started")}) >= len(flows), within=75)
        back = time.monotonic() - began
    await ready(stage)
    assert await checks.violations(stage, kate) == []
    note = f"{how}: noticed after {noticed:.1f} s"
    return Row(scenario="dead-path", seed=SEED, faults=1, acknowledged=203, back=[back], note=note)


@pytest.mark.scenario("lost-puback")
async def test_an_event_whose_acknowledgement_is_lost_is_published_again_under_the_same_id_and_stored_once(
    proxied: tuple[Stage, Proxy], record: Record, tier: Tier
) -> None:
    stage, proxy = proxied
    kate = await stage.agent()
    flows = tier(quick=10, all=25, nightly=250)
    proxy.loses = lambda frame: b'"stream":"TASKFLOW_EVT"' in frame and b'"duplicate"' not in frame
    async with kate.listening("taskflow.evt.>") as heard:
        await in_order([partial(kate.start, goal=f"g-{n}") for n in range(flows)])
        await heard.different(2 * flows)  # `created` and `started`
        # One acknowledgement stands for a batch of events, and only its loss shows that they are published again.
        await heard.until(lambda: proxy.lost > 0 and len(heard.messages) > 2 * flows, within=60)
    stored = await stage.stream(EVENTS, kate)
    ids = [sent.json["id"] for sent in stored]
    assert len(ids) == len(set(ids)) == 2 * flows
    assert len(heard.messages) > 2 * flows, "nothing was published again"
    await ready(stage)
    assert await checks.violations(stage, kate) == []
    note = f"{len(heard.messages)} publishes for {len(ids)} events"
    record(Row(scenario="lost-puback", seed=SEED, faults=proxy.lost, acknowledged=flows, duplicated=len(ids) - len(set(ids)), note=note))


@pytest.mark.full
@pytest.mark.scenario("slow-link")
async def test_a_slow_link_only_slows_down(proxied: tuple[Stage, Proxy], dice: random.Random, record: Record, tier: Tier) -> None:
    stage, proxy = proxied
    kate = await stage.agent()
    load = Load([kate], dice, parts=[part for part in PARTS if part not in {"timeout", "timer"}])
    await load.open()
    proxy.latency, proxy.bandwidth = 0.03, 200_000.0
    await load.play(rate=20, flows=tier(all=100, nightly=1000))
    found = await verdict(stage, load, kate, at_least=tier(all=200, nightly=2000), within=120)
    record(found.row("slow-link", faults=1, note="30 ms, 200 kB/s"))
    assert found.bad == []


@pytest.mark.scenario("flapping-link")
async def test_a_link_that_flaps_under_load_loses_and_doubles_nothing(
    proxied: tuple[Stage, Proxy], dice: random.Random, record: Record, tier: Tier
) -> None:
    stage, proxy = proxied
    kate = await stage.agent()
    load = Load([kate, await stage.agent("bob")], dice)
    await load.open()
    back: list[float] = []
    async with asyncio.TaskGroup() as group:
        group.create_task(load.play(rate=15))
        for _ in range(tier(quick=8, all=25, nightly=50)):
            await asyncio.sleep(dice.uniform(0.1, 0.6))
            proxy.closed = True
            proxy.drop(reset=dice.random() < 0.5)
            await asyncio.sleep(dice.uniform(0.0, 0.6))
            proxy.closed = False
            seen, began = proxy.connections, time.monotonic()
            await eventually(lambda: proxy.connections > seen, within=15)  # noqa: B023  awaited within the round
            back.append(time.monotonic() - began)
        load.stop()
    found = await verdict(stage, load, kate, at_least=tier(quick=80, all=300, nightly=300), within=120)
    record(found.row("flapping-link", faults=len(back), back=back))
    assert found.bad == []


@pytest.mark.scenario("stop-on-a-dead-path")
async def test_sigterm_while_the_path_is_dead_ends_in_time_and_loses_nothing(proxied: tuple[Stage, Proxy], record: Record) -> None:
    stage, proxy = proxied
    kate = await stage.agent()
    flow = await kate.parked("c")
    proxy.strand()
    proxy.closed = True
    await kate.publish(TOPIC, encoded({"correlation_id": "c", "payload": 1}), {"Nats-Msg-Id": "r"})
    began = time.monotonic()
    assert await stage.stop(within=45) == 0, "systemd kills it then (TimeoutStopSec in deploy/systemd)"
    took = time.monotonic() - began
    proxy.drop()  # or the broker would hand requests to the dead worker until it notices: its own pings take minutes
    proxy.heal()
    await stage.start()
    await kate.until(flow, "running")
    assert await checks.violations(stage, kate) == []
    record(Row(scenario="stop-on-a-dead-path", seed=SEED, faults=1, acknowledged=3, back=[took]))
