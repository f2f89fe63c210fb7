"""Play the demo: a flow survives the kill of its worker.

The flow is parked, the worker is killed, the reply is sent while it is dead, and nothing is lost.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import click
import nats
from nats.aio.client import Client
from nats.errors import Error as NatsError

from nats_taskflow import version
from nats_taskflow.bus.nats.server import EmbeddedServer
from nats_taskflow.config import LogConfig
from nats_taskflow.observe.log import configure_logging

TOPIC, CORRELATION = "agent.delegate.reply", "corr-42"
_PATIENCE = 10.0


class StoryFailed(Exception):
    """The demo went wrong; the message says where."""


def run() -> int:
    """Play the demo; return 0 when all of it came true, 1 otherwise."""
    configure_logging(LogConfig(level="error"))
    with tempfile.TemporaryDirectory(prefix="taskflow-demo-") as folder:
        try:
            asyncio.run(_Story(Path(folder)).tell())
        except StoryFailed as failure:
            click.secho(f"\n  The demo failed: {failure}", fg="red", err=True)
            log = Path(folder) / "worker.log"
            click.echo(log.read_text(encoding="utf-8") if log.exists() else "", err=True)
            return 1
    return 0


class _Story:
    """The demo's parts: a broker, a killable worker process, an agent's connection."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._server = EmbeddedServer(folder / "nats")
        self._worker: asyncio.subprocess.Process | None = None
        self._began = time.monotonic()
        self._chapter = 0

    async def tell(self) -> None:
        """Play the chapters, from start to end."""
        click.secho("\n  nats-taskflow: a flow that survives kill -9\n", bold=True)
        async with self._broker(), self._agent() as agent:
            await self._start()
            flow = await self._park(agent)
            await self._die_and_reply(agent)
            await self._restart(agent, flow)
            await self._end(agent, flow)
        click.secho(f"\n  Done in {time.monotonic() - self._began:.1f} s. Nothing was lost, nothing happened twice.", bold=True)
        click.echo("  Play with it yourself: make run\n")

    @asynccontextmanager
    async def _broker(self) -> AsyncIterator[None]:
        """Run a JetStream server; leave neither it nor a worker running."""
        await self._server.start()
        try:
            yield
        finally:
            if self._worker is not None and self._worker.returncode is None:
                self._worker.kill()
                await self._worker.wait()
            await self._server.stop()

    @asynccontextmanager
    async def _agent(self) -> AsyncIterator[Client]:
        """Connect as an agent would, with a plain NATS client."""
        client = await nats.connect(self._server.url)
        try:
            yield client
        finally:
            await client.close()

    async def _start(self) -> None:
        """Start the worker."""
        self._begin_chapter("A JetStream server and a worker start.")
        self._show("nats", f"{self._server.url}  (sync_interval: always)")
        pid = await self._start_worker()
        self._show("worker", f"pid {pid}, flows in SQLite")

    async def _park(self, agent: Client) -> str:
        """Start a flow and park it on a delegate's reply."""
        self._begin_chapter("Agent kate starts a flow and parks it until a delegate answers.")
        started = await _ask(agent, "start", {"controller_id": "kate/inbox-triage", "goal": "triage the inbox", "state": {"mails": 3}})
        flow: str = started["flow"]["id"]
        self._show("start", f"flow {flow} is {started['flow']['status']}")
        wait = {"kind": "external_event", "topic": TOPIC, "correlation_id": CORRELATION}
        parked = await _ask(agent, "wait", {"flow_id": flow, "wait_condition": wait})
        self._show("wait", f"{parked['flow']['status']} for ({TOPIC}, {CORRELATION}), revision {parked['flow']['revision']}")
        return flow

    async def _die_and_reply(self, agent: Client) -> None:
        """Kill the worker, and let the reply come while it is dead."""
        self._begin_chapter("The worker is killed with SIGKILL. The delegate answers while it is dead.")
        assert self._worker is not None
        self._worker.send_signal(signal.SIGKILL)
        code = await self._worker.wait()
        self._show("kill -9", f"worker gone (exit {code})")
        reply = {"correlation_id": CORRELATION, "payload": {"answer": 42}}
        stored = await agent.jetstream().publish(TOPIC, json.dumps(reply).encode())
        self._show("reply", f"{json.dumps(reply)}")
        self._show("", f"stored by {stored.stream} as message {stored.seq}; nobody is there to read it")

    async def _restart(self, agent: Client, flow: str) -> None:
        """Start the worker again and see the flow resume."""
        self._begin_chapter("A new worker starts on the same database. The flow resumes by itself.")
        pid = await self._start_worker()
        self._show("worker", f"pid {pid}, recovered")
        resumed = await self._until(agent, flow, lambda shown: shown["status"] == "running")
        self._show("resumed", f"state {json.dumps(resumed['state']['resume_event'])} after revision {resumed['revision']}")
        if resumed["state"]["resume_event"] != {"answer": 42}:
            raise StoryFailed("the flow resumed with another payload than the delegate sent")

    async def _end(self, agent: Client, flow: str) -> None:
        """Finish the flow, and show journal and events side by side."""
        self._begin_chapter("Kate finishes the flow. Its journal, and the events every subscriber got:")
        finished = await _ask(agent, "finish", {"flow_id": flow, "final_state": {"triaged": True}})
        if finished["flow"]["status"] != "finished":
            raise StoryFailed("the flow did not finish")
        journal = (await _ask(agent, "history", {"flow_id": flow}))["events"]
        published = await self._events(agent, flow, len(journal))
        click.echo("       seq  revision  journal    by                          event in TASKFLOW_EVT")
        for entry, (subject, event) in zip(journal, published, strict=True):
            kind = subject.rsplit(".", 1)[1]
            if (entry["seq"], entry["kind"]) != (int(event["sequence"]), kind):
                raise StoryFailed(f"the journal says {entry['kind']} where the event says {kind}")
            click.echo(f"       {entry['seq']:<4} {entry['revision']:<9} {entry['kind']:<10} {entry['actor']:<27} {event['type']}")

    async def _start_worker(self) -> int:
        """Start a worker process and wait for its ready line."""
        environment = {
            **os.environ,
            "TASKFLOW_NATS_URL": self._server.url,
            "TASKFLOW_STORE_PATH": str(self._folder / "flows.db"),
            "TASKFLOW_HTTP_BIND": "off",
            "TASKFLOW_SUBJECTS_PREFIX": "taskflow",
            "TASKFLOW_REPLY_TOPICS": TOPIC,
        }
        with (self._folder / "worker.log").open("ab") as log:
            self._worker = await asyncio.create_subprocess_exec(
                *version.command("run"), stdout=asyncio.subprocess.PIPE, stderr=log, env=environment, cwd=self._folder
            )
        assert self._worker.stdout is not None
        try:
            line = await asyncio.wait_for(self._worker.stdout.readline(), _PATIENCE)
        except TimeoutError as error:
            raise StoryFailed(f"the worker was not ready within {_PATIENCE:.0f} s") from error
        if not line:
            raise StoryFailed("the worker ended instead of starting")
        return int(json.loads(line)["pid"])

    async def _until(self, agent: Client, flow: str, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Poll the flow until the condition is true of it. Raises `StoryFailed`."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            shown: dict[str, Any] = (await _ask(agent, "status", {"flow_id": flow}))["flow"]
            if condition(shown):
                return shown
            if time.monotonic() > deadline:
                raise StoryFailed(f"the flow stayed {shown['status']}")
            await asyncio.sleep(0.02)

    async def _events(self, agent: Client, flow: str, count: int) -> list[tuple[str, dict[str, Any]]]:
        """Read as many of the flow's events from the stream."""
        subscription = await agent.jetstream().subscribe(f"taskflow.evt.kate.{flow}.*", ordered_consumer=True)
        try:
            messages = [await subscription.next_msg(timeout=_PATIENCE) for _ in range(count)]
        except NatsError as error:
            raise StoryFailed(f"not all {count} events came: {error}") from error
        return [(message.subject, json.loads(message.data)) for message in messages]

    def _begin_chapter(self, title: str) -> None:
        self._chapter += 1
        click.echo()
        click.secho(f"  {self._chapter}. {title}", fg="cyan")

    def _show(self, label: str, text: str) -> None:
        click.echo(f"     {label:<8} {text}")


async def _ask(agent: Client, verb: str, body: dict[str, Any]) -> dict[str, Any]:
    """Send a request as kate and return the answer.

    Raises `StoryFailed` for a refusal.
    """
    try:
        answer = await agent.request(f"taskflow.api.kate.{verb}", json.dumps(body).encode(), timeout=_PATIENCE)
    except NatsError as error:
        raise StoryFailed(f"{verb} was not answered: {error}") from error
    decoded: dict[str, Any] = json.loads(answer.data)
    if not decoded["ok"]:
        raise StoryFailed(f"{verb} was refused: {decoded['error']['message']}")
    return decoded
