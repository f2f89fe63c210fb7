"""Three servers on the cluster configuration of `deploy/nats/`, as it is but for ports and paths: the leader is killed, nothing is lost."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import uuid
from collections.abc import AsyncIterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js import JetStreamContext

from nats_taskflow.bus.nats.server import EmbeddedServer, find_server, quote
from tests.e2e import checks
from tests.e2e.stage import DEAD_LETTERS, EVENTS, INBOUND, Agent, encoded
from tests.eventually import eventually
from tests.ports import kept_ports
from tests.security.guarded import Guarded, Refused, filled, inbox_of

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(240)]

SERVERS = ("taskflow-1", "taskflow-2", "taskflow-3")
_ELECTED = 60.0
"""Seconds for an election on a loaded machine; it takes one to five."""


class Cluster(EmbeddedServer):
    """Three servers in the place of one. `folder` has the filled templates."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.folder = folder
        ports = kept_ports(3 * len(SERVERS))
        self.clients, self.monitors, self.routes = (dict(zip(SERVERS, ports[at::3], strict=True)) for at in range(3))
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def url(self) -> str:
        """Where clients connect."""
        return ",".join(self.urls)

    @property
    def urls(self) -> list[str]:
        """Where clients connect, each by itself."""
        return [f"nats://127.0.0.1:{port}" for port in self.clients.values()]

    async def start(self) -> None:
        """Start those that do not run, and wait until each has found the others."""
        for name in SERVERS:
            if name not in self.running:
                self.begin(name)
        for port in self.monitors.values():
            await eventually(partial(self._healthy, port), within=_ELECTED)

    def begin(self, name: str) -> None:
        """Start a server."""
        config = self.folder / f"{name}.conf"
        config.write_text(self._adapted(name), encoding="utf-8")
        routes = ", ".join(f'"nats://127.0.0.1:{port}"' for port in self.routes.values())
        environment = {**os.environ, "TASKFLOW_SERVER_NAME": name, "TASKFLOW_ROUTES": f"[{routes}]"}
        with (self.folder / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen([str(find_server()), "--config", str(config)], env=environment, stdout=log, stderr=log)

    def end(self, name: str, how: signal.Signals = signal.SIGKILL) -> None:
        """End a server."""
        server = self.running.pop(name)
        server.send_signal(how)
        server.wait(timeout=30)

    async def stop(self) -> None:
        """End all."""
        for name in tuple(self.running):
            await asyncio.to_thread(self.end, name)

    def _adapted(self, name: str) -> str:
        """Return the shipped configuration with other ports and another folder, and nothing else changed."""
        text = (self.folder / "nats-cluster.conf").read_text(encoding="utf-8")
        for shipped, ours in (
            ('listen: "0.0.0.0:4222"', f'listen: "127.0.0.1:{self.clients[name]}"'),
            ('http: "127.0.0.1:8222"', f'http: "127.0.0.1:{self.monitors[name]}"'),
            ('listen: "0.0.0.0:6222"', f'listen: "127.0.0.1:{self.routes[name]}"'),
            ('store_dir: "/var/lib/nats/jetstream"', f"store_dir: {quote(self.folder / name)}"),
        ):
            assert text.count(shipped) == 1, f"deploy/nats/nats-cluster.conf has no {shipped}"
            text = text.replace(shipped, ours)
        return text

    @staticmethod
    async def _healthy(port: int) -> bool:
        """Tell whether a server says that it is well: JetStream has a leader, and it is in step."""
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return False
        writer.write(b"GET /healthz HTTP/1.0\r\n\r\n")
        answer = await reader.read()
        writer.close()
        return b" 200 " in answer.partition(b"\r\n")[0]


class Clustered(Guarded):
    """The stage behind permissions, on three servers, with three copies of each stream."""

    server: Cluster

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, settings={"TASKFLOW_STREAM_REPLICAS": "3"})
        templates = folder / "cluster"
        templates.mkdir()
        filled(templates, self.keys)
        self.server = Cluster(templates)

    async def connect(self, name: str, *, refused: Refused | None = None, **options: Any) -> Client:
        """Connect as somebody, to whichever server is there."""
        settings = {"nkeys_seed": str(self.keys[name].seed), "inbox_prefix": inbox_of(name), "reconnect_time_wait": 0.05, **options}
        client = await nats.connect(self.server.urls, max_reconnect_attempts=-1, error_cb=(refused or Refused()).take, **settings)
        self._clients.append(client)
        return client


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Clustered]:
    """Three servers, and a worker that is ready."""
    async with Clustered(tmp_path) as made:
        yield made


async def stored(js: JetStreamContext, subject: str, body: Mapping[str, Any], message_id: str) -> None:
    """Publish until the stream says that it has it, as a careful agent does: the same id each time."""

    async def once() -> bool:
        try:
            await js.publish(subject, encoded(body), timeout=2, headers={"Nats-Msg-Id": message_id})
        except NatsError:
            return False
        return True

    await eventually(once, within=_ELECTED)


async def cluster_of(operator: Agent, stream: str) -> Any:
    """Return what a stream says of its copies; None while nobody leads."""
    try:
        found = (await operator.js.stream_info(stream)).cluster
    except NatsError:
        return None
    return found if found is not None and found.leader else None


@pytest.mark.full
async def test_the_loss_of_a_leader_loses_nothing_and_the_worker_goes_on_with_the_other_two(stage: Clustered) -> None:
    kate, billing, operator = await stage.agent("kate"), await stage.agent("billing"), await stage.agent("operator")
    for stream in (INBOUND, EVENTS, DEAD_LETTERS):
        copies = await eventually(partial(cluster_of, operator, stream), within=_ELECTED)
        assert {copies.leader, *(one.name for one in copies.replicas or ())} == set(SERVERS), f"{stream} has not a copy on each server"
    topic, flows = "taskflow.reply.kate", {f"c-{n}": str(uuid.uuid4()) for n in range(30)}
    accepted: list[tuple[str, str]] = []

    async def commands(correlation_ids: list[str]) -> None:
        for correlation_id in correlation_ids:
            flow_id = flows[correlation_id]
            wait = {"kind": "external_event", "topic": topic, "correlation_id": correlation_id}
            for verb, body in (
                ("start", {"flow_id": flow_id, "controller_id": "kate/test", "goal": "survive"}),
                ("wait", {"flow_id": flow_id, "wait_condition": wait}),
            ):
                await stored(kate.js, f"taskflow.cmd.kate.{verb}", body, f"{verb}-{correlation_id}")
                accepted.append(("kate", f"{verb}-{correlation_id}"))

    ids = list(flows)
    await commands(ids[:10])
    leader = (await eventually(partial(cluster_of, operator, INBOUND), within=_ELECTED)).leader
    under_way = asyncio.create_task(commands(ids[10:20]))
    stage.server.end(leader)
    await under_way
    await commands(ids[20:])
    led = await eventually(partial(cluster_of, operator, INBOUND), within=_ELECTED)
    assert led.leader != leader
    for correlation_id in ids:
        await stored(billing.js, f"{topic}.{correlation_id}", {"answer": correlation_id}, f"r-{correlation_id}")

    async def all_resumed() -> bool:
        try:
            found = [await kate.flow(flow_id) for flow_id in flows.values()]
        except (NatsError, KeyError):  # the worker is at another server in a moment
            return False
        return [flow["state"].get("resume_event") for flow in found] == [{"answer": one} for one in ids]

    await eventually(all_resumed, within=_ELECTED)
    stage.server.begin(leader)  # it comes back with what it had, and is brought into step

    async def in_step() -> bool:
        copies = [await cluster_of(operator, stream) for stream in (INBOUND, EVENTS)]
        return all(of is not None and all(one.current and not one.offline for one in of.replicas) for of in copies)

    await eventually(in_step, within=_ELECTED)
    assert await checks.violations(stage, operator, accepted=accepted, clean_logs=False) == []
