"""The stage of the end-to-end tests: a real nats-server, a real worker process, and agents that know only the contract.

The worker is whatever `python -m nats_taskflow run` is; the test kills, stops and starts it. Once it is stopped, a copy of its
database shows what really happened.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import msgspec
import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.errors import NoRespondersError
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig, ConsumerInfo, DeliverPolicy, PubAck
from nats.js.errors import ServiceUnavailableError

from nats_taskflow.bus.nats.server import EmbeddedServer
from tests.eventually import eventually
from tests.ports import kept_port

Json = dict[str, Any]
TOPIC = "agent.delegate.reply"
INBOUND, EVENTS, DEAD_LETTERS = "TASKFLOW_IN", "TASKFLOW_EVT", "TASKFLOW_DLQ"
CONSUMERS = ("worker", "replies")
_ROOT = Path(__file__).parents[2]
_PATIENCE = 40.0
_SHOWN, _LOGS = 40, 5
WORKER = (sys.executable, "-m", "nats_taskflow", "run")
_CHUNK = 100


class Sent(msgspec.Struct, frozen=True):
    """A message as a stream keeps it."""

    seq: int
    subject: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Json:
        """The body, decoded."""
        decoded: Json = json.loads(self.body)
        return decoded


class Ended(msgspec.Struct, frozen=True):
    """How a worker ended that was not expected to become ready."""

    code: int
    stderr: str
    seconds: float


class DidNotStart(AssertionError):
    """A worker ended before it was ready."""


class Heard:
    """What a core subscription has heard so far; survives a restart of the broker as the client does."""

    def __init__(self) -> None:
        self.messages: list[Msg] = []
        self.ids: set[str] = set()
        self._more = asyncio.Event()

    async def take(self, message: Msg) -> None:
        """Note a message."""
        self.messages.append(message)
        self.ids.add((message.headers or {}).get("Nats-Msg-Id", ""))
        self._more.set()

    async def until(self, true: Callable[[], Any], *, within: float = _PATIENCE) -> None:
        """Return once `true()`, looked at after each message."""
        async with asyncio.timeout(within):
            while not true():
                self._more.clear()
                await self._more.wait()

    async def count(self, number: int, *, within: float = _PATIENCE) -> None:
        """Return once this many messages were heard."""
        await self.until(lambda: len(self.messages) >= number, within=within)

    async def different(self, number: int, *, within: float = 60.0) -> None:
        """Return once this many different messages were heard: a repeat, under the same `Nats-Msg-Id`, counts once."""
        await self.until(lambda: len(self.ids) >= number, within=within)


class Agent:
    """An agent: a name and a connection. It knows nothing of the worker but the contract."""

    def __init__(self, name: str, client: Client) -> None:
        self.name = name
        self.client = client
        self.js: JetStreamContext = client.jetstream(timeout=5)

    async def ask(self, verb: str, body: Any = None, *, headers: Mapping[str, str] | None = None, raw: bytes | None = None) -> Msg:
        """Send a request on `api` and return the whole answer."""
        data = raw if raw is not None else encoded(body or {})
        return await self.client.request(f"taskflow.api.{self.name}.{verb}", data, timeout=10, headers=dict(headers) if headers else None)

    async def api(self, verb: str, body: Json | None = None, command_id: str | None = None) -> Json:
        """Send a request on `api` and return the decoded answer."""
        answer = await self.ask(verb, body, headers={"Nats-Msg-Id": command_id} if command_id else None)
        decoded: Json = json.loads(answer.data)
        return decoded

    async def flow(self, flow_id: str) -> Json:
        """Ask for a flow."""
        shown: Json = (await self.api("status", {"flow_id": flow_id}))["flow"]
        return shown

    async def start(self, **fields: Any) -> str:
        """Start a flow over `api` and return its id."""
        answer = await self.api("start", {"controller_id": f"{self.name}/test", "goal": "test", **fields})
        assert answer["ok"], answer
        flow_id: str = answer["flow"]["id"]
        return flow_id

    async def park(self, flow_id: str, correlation_id: str, *, topic: str = TOPIC, **more: Any) -> Json:
        """Park a flow on a reply over `api`."""
        answer = await self.api("wait", {"flow_id": flow_id, "wait_condition": event(correlation_id, topic, **more)})
        assert answer["ok"], answer
        return answer

    async def parked(self, correlation_id: str, **more: Any) -> str:
        """Start a flow, park it on a reply, and return its id."""
        flow_id = await self.start()
        await self.park(flow_id, correlation_id, **more)
        return flow_id

    async def until(self, flow_id: str, status: str, *, within: float = 30.0) -> Json:
        """Return the flow once it has this status."""

        async def there() -> Json | None:
            shown = await self.flow(flow_id)
            return shown if shown["status"] == status else None

        found = await eventually(there, within=within)
        assert found is not None
        return found

    async def history(self, flow_id: str) -> list[Json]:
        """Ask for a flow's journal (up to 1,000 entries)."""
        events: list[Json] = (await self.api("history", {"flow_id": flow_id, "limit": 1000}))["events"]
        return events

    async def kinds(self, flow_id: str) -> list[str]:
        """Ask what happened to a flow, in order."""
        return [entry["kind"] for entry in await self.history(flow_id)]

    async def cmd(self, verb: str, body: Json, command_id: str, *, reply_to: str | None = None) -> PubAck:
        """Publish a durable command."""
        told = {"Taskflow-Reply-To": reply_to} if reply_to else {}
        return await self.publish(f"taskflow.cmd.{self.name}.{verb}", encoded(body), {"Nats-Msg-Id": command_id, **told})

    async def outcome(self, command_id: str, *, within: float = 30.0) -> Json:
        """Return a command's stored outcome once there is one."""
        return json.loads(await self.outcome_bytes(command_id, within=within))  # type: ignore[no-any-return]  # an object, by contract

    async def outcome_bytes(self, command_id: str, *, within: float = 30.0) -> bytes:
        """Return a command's stored outcome, byte for byte."""

        async def stored() -> bytes:
            answer = await self.ask("outcome", {"command_id": command_id})
            return b"" if b'"code":"no_outcome"' in answer.data else bytes(answer.data)

        return await eventually(stored, within=within)

    async def consumer(self, name: str = "worker", *, within: float = _PATIENCE) -> ConsumerInfo:
        """Ask the broker how far one of the worker's consumers is; one that was started a moment ago may let the first requests wait."""

        async def told() -> ConsumerInfo | None:
            with suppress(TimeoutError, NoRespondersError, ServiceUnavailableError):
                info: ConsumerInfo = await self.js.consumer_info(INBOUND, name)
                return info
            return None

        answer = await eventually(told, within=within)
        assert answer is not None
        return answer

    async def nothing_pending(self) -> bool:
        """Tell whether everything in the inbound stream was delivered and acknowledged."""
        infos = [await self.consumer(name) for name in CONSUMERS]
        return not any(info.num_pending or info.num_ack_pending for info in infos)

    async def settled_up_to(self) -> int:
        """Ask up to which message of the inbound stream everything is acknowledged: a consumer with nothing left is not behind."""
        last = (await self.js.stream_info(INBOUND)).state.last_seq
        infos = [await self.consumer(name) for name in CONSUMERS]
        behind = [info.ack_floor.stream_seq if info.ack_floor else 0 for info in infos if info.num_pending or info.num_ack_pending]
        return min([last, *behind])

    async def reply(self, topic: str, correlation_id: str, payload: Any, event_id: str | None = None) -> PubAck:
        """Publish a reply as the usual body; `event_id` goes into the header `Nats-Msg-Id`."""
        body = {"correlation_id": correlation_id, "payload": payload}
        return await self.publish(topic, encoded(body), {"Nats-Msg-Id": event_id} if event_id else None)

    async def publish(self, subject: str, body: bytes, headers: Mapping[str, str] | None = None) -> PubAck:
        """Publish raw bytes to a stream."""
        return await self.js.publish(subject, body, headers=dict(headers) if headers else None)

    async def insist(self, subject: str, body: bytes, headers: Mapping[str, str], *, within: float = 30.0) -> PubAck:
        """Publish until the broker has stored it, through an outage; the headers must name a `Nats-Msg-Id`."""

        async def stored() -> PubAck | None:
            try:
                return await self.js.publish(subject, body, headers=dict(headers), timeout=2)
            except (NatsError, TimeoutError, OSError):
                return None

        answer = await eventually(stored, within=within)
        assert answer is not None
        return answer

    @asynccontextmanager
    async def listening(self, pattern: str) -> AsyncIterator[Heard]:
        """Hear what is published on a pattern, as a core subscriber."""
        heard = Heard()
        subscription = await self.client.subscribe(pattern, cb=heard.take)
        await self.client.flush()
        try:
            yield heard
        finally:
            if not self.client.is_closed:
                await subscription.unsubscribe()


class World:
    """A broker and a worker as those see them who neither start nor end them: connections, streams, and the settings of a command.

    `settings` are environment variables for every worker and command. Others may be at work in the same world, as agents of other names.
    Commands run in `folder`; the worker's database and logs lie in `home`.
    """

    def __init__(self, folder: Path, server: EmbeddedServer, settings: Mapping[str, str], *, home: Path | None = None) -> None:
        self.folder = folder
        self.home = home or folder
        self.server = server
        self.settings = dict(settings)
        self.ready: Json = {}
        self._clients: list[Client] = []

    async def leave(self) -> None:
        """Close the connections that were made here."""
        closing = [asyncio.create_task(client.close()) for client in self._clients]
        if closing:
            _, hanging = await asyncio.wait(closing, timeout=_PATIENCE)
            for each in hanging:  # nats-py waits for ever in places; what runs is ended all the same
                each.cancel()

    @property
    def url(self) -> str:
        """Where agents connect."""
        return self.server.url

    @property
    def path(self) -> Path:
        """The workers' database file."""
        return self.home / "flows.db"

    def logs(self) -> list[Path]:
        """The workers' stderr, one file for each, in order."""
        return sorted(self.home.glob("worker-*.log"))

    def environment(self, **changes: str) -> dict[str, str]:
        """The environment of a worker: nothing of the tester's own settings comes through."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("TASKFLOW_", "NATS_"))}
        own = {
            "TASKFLOW_NATS_URL": self.server.url,
            "TASKFLOW_STORE_PATH": str(self.path),
            "TASKFLOW_HTTP_BIND": "127.0.0.1:0",
            "TASKFLOW_REPLY_TOPICS": TOPIC,
            "PYTHONPATH": str(_ROOT),  # the worker of this checkout, from whatever folder it is started
        }
        return {**clean, **own, **self.settings, **changes}

    async def agent(self, name: str = "kate", **options: Any) -> Agent:
        """Connect as an agent; the connection comes back by itself after an outage of the broker."""

        async def quiet(_: Exception) -> None:
            """An outage is part of the play."""

        client = await nats.connect(
            self.server.url, max_reconnect_attempts=-1, reconnect_time_wait=0.05, error_cb=quiet, allow_reconnect=True, **options
        )
        self._clients.append(client)
        return Agent(name, client)

    async def stream(self, name: str, agent: Agent, *, after: int = 0) -> list[Sent]:
        """Read a stream from its start, or from what comes after a sequence, to what is its end now."""
        state = (await agent.js.stream_info(name)).state
        if state.messages == 0 or state.last_seq <= after:
            return []
        start = ConsumerConfig(deliver_policy=DeliverPolicy.BY_START_SEQUENCE, opt_start_seq=after + 1)
        subscription = await agent.js.subscribe(">", stream=name, ordered_consumer=True, config=start)
        found: list[Sent] = []
        try:
            while not found or found[-1].seq < state.last_seq:
                message = await subscription.next_msg(timeout=10)
                found.append(Sent(message.metadata.sequence.stream, message.subject, dict(message.headers or {}), message.data))
        finally:
            await subscription.unsubscribe()
        return found

    async def events(self, agent: Agent, flow_id: str | None = None) -> list[Sent]:
        """Read the published events, of one flow or of all."""
        return [sent for sent in await self.stream(EVENTS, agent) if flow_id is None or sent.subject.split(".")[3] == flow_id]

    async def dead(self, agent: Agent, count: int = 0) -> list[Sent]:
        """Read the dead letters, once there are at least `count`."""

        async def there() -> list[Sent] | None:
            found = await self.stream(DEAD_LETTERS, agent)
            return found if len(found) >= count else None

        found = await there() if count == 0 else await eventually(there)
        return found or []


class Stage(World):
    """A broker and a worker in a folder, both in the test's hand.

    `program` is what is started as the worker: the real one, one with a fault planted in it (`tests.faults.launcher`), or either
    under another program such as strace.
    """

    def __init__(
        self,
        folder: Path,
        *,
        settings: Mapping[str, str] | None = None,
        server: EmbeddedServer | None = None,
        program: Sequence[str] = WORKER,
    ) -> None:
        super().__init__(folder, server or EmbeddedServer(folder / "nats", kept_port()), settings or {})
        self.program = tuple(program)
        self._worker: asyncio.subprocess.Process | None = None
        self._runs = 0

    async def __aenter__(self) -> Self:
        await self.server.start()
        try:
            await self.start()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End everything, and print the ends of the last workers' logs: pytest shows them where the test failed."""
        await self.leave()
        try:
            if self._worker is not None:
                await self.kill()
        finally:
            await self.server.stop()
        for log in self.logs()[-_LOGS:]:
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
            sys.stdout.write("\n".join([f"--- {log.name}", *lines[-_SHOWN:], ""]))

    @property
    def pid(self) -> int:
        """The running worker's process id."""
        assert self._worker is not None, "no worker runs"
        return self._worker.pid

    @property
    def process(self) -> asyncio.subprocess.Process:
        """The worker's process."""
        assert self._worker is not None, "no worker runs"
        return self._worker

    async def over(self, *, within: float = _PATIENCE) -> int:
        """Return the exit code of a worker that ends by itself, or by somebody else's hand."""
        code = await asyncio.wait_for(self.process.wait(), within)
        self._worker = None
        return code

    @property
    def running(self) -> bool:
        """Whether a worker was started and not seen to end."""
        return self._worker is not None and self._worker.returncode is None

    async def spawn(self, **changes: str) -> tuple[asyncio.subprocess.Process, Path]:
        """Start a worker process and return at once; its stderr goes into the file."""
        self._runs += 1
        path = self.folder / f"worker-{self._runs:02}.log"
        with path.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *self.program,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env=self.environment(**changes),
                cwd=self.folder,
            )
        return process, path

    async def start(self, **changes: str) -> Json:
        """Start the worker and return its ready line."""
        assert not self.running, "a worker runs already"
        self._worker, log = await self.spawn(**changes)
        assert self._worker.stdout is not None
        line = await asyncio.wait_for(self._worker.stdout.readline(), _PATIENCE)
        if not line:
            code = await self.ended()
            raise DidNotStart(f"the worker ended with {code} instead of starting: {log.read_text(encoding='utf-8')[-2000:]}")
        self.ready = json.loads(line)
        assert self.ready["event"] == "ready", line
        return self.ready

    async def refused(self, **changes: str) -> Ended:
        """Start another worker that is expected to end by itself, and return how it did."""
        began = time.monotonic()
        process, log = await self.spawn(**changes)
        try:
            async with asyncio.timeout(_PATIENCE):
                await process.communicate()
        except TimeoutError:
            process.kill()
            await process.communicate()
            raise
        assert process.returncode is not None
        return Ended(process.returncode, log.read_text(encoding="utf-8"), time.monotonic() - began)

    async def kill(self) -> None:
        """Kill the worker with SIGKILL."""
        await self._end(signal.SIGKILL)

    async def stop(self, *, within: float = _PATIENCE) -> int:
        """Stop the worker with SIGTERM and return its exit code."""
        return await self._end(signal.SIGTERM, within)

    async def ended(self) -> int:
        """Wait until the worker ends by itself, and return its exit code."""
        worker = self._worker
        assert worker is not None, "no worker runs"
        code = await worker.wait()
        if self._worker is worker:
            self._worker = None
        return code

    async def restart(self) -> Json:
        """Stop the worker in order, start it again, and return the ready line."""
        assert await self.stop() == 0
        return await self.start()

    async def _end(self, how: signal.Signals, within: float = _PATIENCE) -> int:
        """Send a signal and wait for the end."""
        worker, self._worker = self._worker, None
        assert worker is not None, "no worker runs"
        if worker.returncode is None:
            worker.send_signal(how)
        try:
            async with asyncio.timeout(within):
                await worker.communicate()
        except TimeoutError:
            worker.kill()
            await worker.communicate()
            raise
        assert worker.returncode is not None
        return worker.returncode

    @contextmanager
    def database(self) -> Iterator[sqlite3.Connection]:
        """Open a copy of the database; the worker must have ended, or the copy would be of nothing in particular."""
        assert not self.running, "stop or kill the worker first"
        copy = self.folder / f"copy-{uuid4().hex[:8]}"
        copy.mkdir()
        for suffix in ("", "-wal", "-shm"):
            file = self.path.with_name(self.path.name + suffix)
            if file.exists():
                shutil.copy(file, copy / file.name)
        connection = sqlite3.connect(copy / self.path.name, isolation_level=None)
        try:
            yield connection
        finally:
            connection.close()
            shutil.rmtree(copy)


def encoded(body: Any) -> bytes:
    """Return a value as JSON bytes."""
    return json.dumps(body).encode()


def event(correlation_id: str, topic: str = TOPIC, **more: Any) -> Json:
    """Return the condition that waits for a reply."""
    return {"kind": "external_event", "topic": topic, "correlation_id": correlation_id, **more}


def new_id() -> str:
    """Return a flow id such as a client may mint."""
    return str(uuid4())


async def in_order(work: Sequence[Callable[[], Any]], *, at_once: int = _CHUNK) -> list[Any]:
    """Begin the pieces of work in their order, `at_once` side by side, and return their results in that order."""
    slots = asyncio.Semaphore(at_once)

    async def one(piece: Callable[[], Any]) -> Any:
        try:
            return await piece()
        finally:
            slots.release()

    async with asyncio.TaskGroup() as group:
        tasks = []
        for piece in work:
            await slots.acquire()
            tasks.append(group.create_task(one(piece)))
    return [task.result() for task in tasks]
