"""Whatever fails in what goes on for ever, the worker goes on to do its whole job, or ends and says so: it never stands still."""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import uvicorn

from nats_taskflow import app, tasks
from nats_taskflow.bus.nats.bus import JetStreamBus
from nats_taskflow.bus.nats.client import PatchedClient
from nats_taskflow.bus.nats.connection import SubscriptionRenewal
from nats_taskflow.bus.nats.outbound import Outbound
from nats_taskflow.bus.nats.publisher import Publisher
from nats_taskflow.bus.nats.pull import Pull
from nats_taskflow.bus.nats.server import EmbeddedServer
from nats_taskflow.client.flows import FlowClient
from nats_taskflow.config import Config
from nats_taskflow.config.secrets import Url
from nats_taskflow.config.settings import HttpConfig, NatsConfig
from nats_taskflow.config.settings import StoreConfig as StoreSettings
from nats_taskflow.engine.deferral import Deferrals
from nats_taskflow.engine.engine import Engine
from nats_taskflow.observe import systemd
from nats_taskflow.observe.probes import BacklogProbe, StoreProbe, WorkerProbes
from nats_taskflow.services.consumer import Consumer
from nats_taskflow.services.dispatcher import Dispatcher
from nats_taskflow.services.ordered_publisher import OrderedPublisher
from nats_taskflow.services.pruner import Pruner
from nats_taskflow.services.relay import Relay
from nats_taskflow.services.signals import StopSignal
from nats_taskflow.services.topology_watch import TopologyWatch
from nats_taskflow.services.wait_engine import WaitEngine
from tests.eventually import eventually
from tests.ports import kept_port

TROUBLES = (MemoryError, pytest.param(RuntimeError, marks=pytest.mark.full), pytest.param(asyncio.CancelledError, marks=pytest.mark.full))
TOPIC = "agent.delegate.reply"
AT_ONCE = 0.02
"""Seconds between rounds of what a worker does now and then."""


class Place(NamedTuple):
    """A function that something which goes on for ever calls. `at_start`: and hardly later."""

    owner: Any
    name: str
    at_start: bool = False

    def __str__(self) -> str:
        return f"{getattr(self.owner, '__name__', self.owner)}.{self.name}"


PLACES = (
    Place(Engine, "_step"),
    Place(Consumer, "_pull", at_start=True),
    Place(Consumer, "_keep_alive"),
    Place(Pull, "_look"),
    Place(Pull, "_refill"),
    Place(Relay, "_fill", at_start=True),
    Place(Relay, "_mark"),
    Place(Relay, "try_again"),
    Place(Relay, "_on_commit"),
    Place(OrderedPublisher, "_dispatch"),
    Place(OrderedPublisher, "_on_answer"),
    Place(Publisher, "_expire"),
    Place(Outbound, "_piece"),
    Place(Outbound, "_write"),
    Place(WaitEngine, "tick"),
    Place(Dispatcher, "dispatch"),
    Place(TopologyWatch, "inspect"),
    Place(Pruner, "prune"),
    Place(WorkerProbes, "sample"),
    Place(BacklogProbe, "count"),
    Place(StoreProbe, "sample"),
    Place(JetStreamBus, "backlog"),
    Place(Deferrals, "_check"),
    Place(SubscriptionRenewal, "_run"),
    Place(systemd, "_reason_not_to_feed"),
    Place(uvicorn.Server, "on_tick"),
    Place(PatchedClient, "_select_next_server"),
)


class Worker:
    """A worker of `app.run` in this process, and the agent's client."""

    def __init__(self, config: Config, flows: FlowClient, server: EmbeddedServer) -> None:
        self.config = config
        self.flows = flows
        self.server = server
        self.codes: list[int] = []
        self.buses: list[JetStreamBus] = []
        self._stop = StopSignal()
        self._task: asyncio.Task[int]

    async def start(self) -> None:
        """Start it, and return when it is ready."""
        out = io.StringIO()
        self._stop = StopSignal()
        self._task = asyncio.create_task(app.run(self.config, out, self._stop))
        await eventually(lambda: out.getvalue() or self._task.done())

    @property
    def over(self) -> bool:
        """Whether it has ended: of itself, or as its last resort (this process is not to end with it)."""
        return self._task.done() or bool(self.codes)

    async def kill(self) -> None:
        """Leave nothing of it behind, also where the test has failed."""
        self._task.cancel()
        await asyncio.wait({self._task}, timeout=20)

    async def end(self) -> int:
        """Return the exit code with which it ends; stop it where it lives."""
        if self.codes:
            self._task.cancel()
        self._stop.request()
        await asyncio.wait({self._task}, timeout=20)
        assert self._task.done()
        if self.codes:
            return self.codes[0]
        failure = None if self._task.cancelled() else self._task.exception()
        return getattr(failure, "exit_code", 1) if failure is not None or self._task.cancelled() else self._task.result()

    async def provoke(self) -> None:
        """Have it do what it only does when something is wrong: reconnect, ask for subscriptions again, judge by a schema."""
        for bus in self.buses:
            if bus.connected:
                bus._connection.renewal.deny("anything")
        flow = await self.flows.start(controller_id="kate/alive", goal="ask about a schema", door="cmd")
        await flow.wait_reply(TOPIC, flow.id, accept={"type": "object", "properties": {"n": {"pattern": "^a+$"}}})

    async def works(self) -> None:
        """Do all that a worker is for: a flow starts, waits, is resumed by a reply and by a timer, and its events are published."""
        flow = await self.flows.start(controller_id="kate/alive", goal="live", door="api")
        await flow.wait_reply(TOPIC, flow.id)
        await self.flows.reply(TOPIC, flow.id, {"ok": True})
        assert (await flow.resumed("20s")).payload == {"ok": True}
        await flow.wait_timer("1ms")
        await flow.resumed("20s")
        await flow.finish()
        kinds = [event.kind async for event in flow.events()]
        assert kinds[-1] == "finished"


@pytest.fixture
async def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Worker]:
    """Give a worker that is not started, with everything in it that comes round now and then coming round at once."""
    rests = (
        *(f"services.relay.{n}" for n in ("_MARK_EVERY", "_TRY_AGAIN")),
        *(f"observe.probes.{n}" for n in ("_EVERY", "_BACKLOG_EVERY", "_SURVEY_EVERY")),
    )
    for name in (*rests, "services.consumer._LOOK_EVERY", "bus.nats.connection._RENEWAL_INTERVAL"):
        monkeypatch.setattr(f"nats_taskflow.{name}", AT_ONCE)
    for function, name in ((TopologyWatch.__init__, "every"), (Pruner.__init__, "interval"), (tasks.repeat, "rest")):
        monkeypatch.setitem(function.__kwdefaults__ or {}, name, AT_ONCE)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    monkeypatch.setenv("WATCHDOG_USEC", str(int(2 * AT_ONCE * 1_000_000)))
    server = EmbeddedServer(tmp_path / "nats", kept_port(), sync_always=False)
    await server.start()
    store = StoreSettings(path=str(tmp_path / "flows.db"))
    settings = Config(nats=NatsConfig(url=(Url(server.url),)), store=store, http=HttpConfig(bind="127.0.0.1:0"))
    async with FlowClient.connect(server.url, agent="kate", patience=20) as flows:
        made = Worker(settings, flows, server)
        monkeypatch.setattr(tasks.LastResort.__init__, "__defaults__", (made.codes.append,))
        opening = JetStreamBus.open

        async def opened(bus: JetStreamBus) -> None:
            made.buses.append(bus)
            await opening(bus)

        monkeypatch.setattr(JetStreamBus, "open", opened)
        yield made
        await made.kill()
    await server.stop()


def failing(monkeypatch: pytest.MonkeyPatch, place: Place, trouble: type[BaseException], armed: Callable[[], bool]) -> list[object]:
    """Have the function raise once when it is armed; returns whose it was at that call, and at each later one of the same."""
    genuine, calls = getattr(place.owner, place.name), list[object]()

    def called(*args: Any, **kwargs: Any) -> Any:
        if armed() and (not calls or calls[0] is args[0] or place.owner is systemd):
            calls.append(args[0])
            if len(calls) == 1:
                raise trouble
        return genuine(*args, **kwargs)

    async def called_async(*args: Any, **kwargs: Any) -> Any:
        return await called(*args, **kwargs)

    monkeypatch.setattr(place.owner, place.name, called_async if asyncio.iscoroutinefunction(genuine) else called)
    return calls


@pytest.mark.parametrize("trouble", TROUBLES, ids=["MemoryError", "RuntimeError", "CancelledError"])
@pytest.mark.parametrize("place", PLACES, ids=str)
async def test_the_worker_goes_on_or_ends(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], place: Place, trouble: type[BaseException]
) -> None:
    ready = place.at_start
    with monkeypatch.context() as patched:
        calls = failing(patched, place, trouble, lambda: ready)
        await worker.start()
        if not place.at_start:
            await worker.works()
        ready = True
        if place.owner is PatchedClient:
            await worker.server.restart(kill=True)
        busy = asyncio.create_task(provoked(worker))
        try:
            await eventually(lambda: calls and (worker.over or len(calls) > 1), within=30)
        finally:
            busy.cancel()
            await asyncio.wait({busy})
    if worker.over:
        assert await worker.end() not in {0, None}
        assert trouble.__name__ in capfd.readouterr().err
        return
    await worker.works()
    assert await worker.end() == 0


async def provoked(worker: Worker) -> None:
    """Give the worker something to do until it has ended, or this is cancelled."""
    while not worker.over:
        with contextlib.suppress(Exception):  # the worker may end meanwhile, and it is judged by what it does later
            await worker.provoke()
            await worker.works()
