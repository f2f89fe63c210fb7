"""One broker for many performances of the canonical scenario, each on empty streams and with a database of its own.

A performance is begun under strace, which kills the worker somewhere; whoever keeps the house starts it again, lets the scenario end, and
looks at everything that is left behind.
"""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from nats_taskflow.bus.nats.server import EmbeddedServer
from tests.e2e import checks
from tests.e2e.stage import DEAD_LETTERS, EVENTS, INBOUND, WORKER, Agent, Json, Stage, encoded
from tests.eventually import eventually
from tests.faults import canonical
from tests.ports import kept_port

SETTINGS = {"TASKFLOW_ENGINE_MAX_BATCH": "2", "TASKFLOW_ENGINE_TICK_INTERVAL": "1s"}
"""Small batches: many commits in one scenario, so that a fault can come between any two changes."""
_KILLED = -signal.SIGKILL
_STORE_BUSY = 10049
"""JetStream's `err_code` for a store that cannot be made."""


class FaultyStage(Stage):
    """A stage whose next workers run under a tracer, one prefix each; later ones run bare. The broker belongs to somebody else.

    `recoveries`: seconds from each start after a fault until the worker was ready.
    """

    under: list[Sequence[str]]

    def __init__(self, folder: Path, server: EmbeddedServer, **settings: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(folder, settings={**SETTINGS, **settings}, server=server)
        self.under = []
        self.ends = frozenset({_KILLED})
        """With which exit codes its workers may end by themselves."""
        self.codes: list[int] = []
        self.ended_at = 0.0
        self.recoveries: list[float] = []

    async def spawn(self, **changes: str) -> tuple[asyncio.subprocess.Process, Path]:
        """Put the tracer before the worker's command."""
        self.program = (*(self.under.pop(0) if self.under else ()), *WORKER)
        return await super().spawn(**changes)

    async def begin(self) -> None:
        """Start a worker that may be killed before it is ready."""
        self._worker, _ = await self.spawn()

    async def survive(self, over: asyncio.Event) -> None:
        """Start the worker again whenever it was killed, until `over`. Any other end is a failure."""
        while not over.is_set():
            assert self._worker is not None
            ended, done = asyncio.create_task(self._worker.wait()), asyncio.create_task(over.wait())
            await asyncio.wait({ended, done}, return_when=asyncio.FIRST_COMPLETED)
            done.cancel()
            if not ended.done():
                ended.cancel()
                return
            await self.again(ended.result())

    async def again(self, code: int) -> None:
        """Start again after an end."""
        assert code in self.ends, f"the worker ended by itself, with {code}: {self.logs()[-1].read_text(encoding='utf-8')[-2000:]}"
        self.codes.append(code)
        self.ended_at = time.time()
        self._worker = None
        if self.under:  # the next one is to be killed too, perhaps before it is ready
            await self.begin()
            return
        began = time.monotonic()
        await self.start()
        self.recoveries.append(time.monotonic() - began)

    async def end(self) -> int:
        """Stop in order, once more after a fault that came during the stop; returns the last exit code."""
        code = await self.stop(within=60)
        while code in self.ends:
            await self.again(code)
            code = await self.stop(within=60)
        return code


class House:
    """A broker whose streams can be made new, and an agent on it."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder = folder
        self.settings = settings
        self.server = EmbeddedServer(folder / "nats", kept_port())
        self.agent: Agent
        self._front = FaultyStage(folder / "front", self.server)
        self._configs: list[Json] = []
        self._performances = 0
        self.published = 0
        """How many messages the broker had acknowledged at the end of the last performance."""

    async def __aenter__(self) -> Self:
        await self.server.start()
        try:
            await self._front.start()  # for once, to learn which streams a worker makes
            assert await self._front.stop() == 0
            self.agent = await self._front.agent(canonical.AGENT)
            for name in (INBOUND, EVENTS, DEAD_LETTERS):
                self._configs.append((await self._call(f"STREAM.INFO.{name}"))["config"])
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End the broker."""
        await self._front.close()

    async def _call(self, verb: str, body: Json | None = None) -> Json:
        """Ask JetStream."""
        answer: Json = json.loads((await self.agent.client.request(f"$JS.API.{verb}", encoded(body) if body else b"", timeout=10)).data)
        assert "error" not in answer, answer
        return answer

    async def _create(self, config: Json) -> None:
        """Make a stream. The broker calls a stream deleted while it still removes its folder, and makes no other there until then."""

        async def made() -> bool:
            answer = await self.agent.client.request(f"$JS.API.STREAM.CREATE.{config['name']}", encoded(config), timeout=10)
            error = json.loads(answer.data).get("error", {})
            assert error.get("err_code") in {None, _STORE_BUSY}, error
            return not error

        await eventually(made, within=30)

    async def clear(self, *, streams: bool = True) -> None:
        """Make the streams new, or leave none."""
        known = (await self._call("STREAM.NAMES")).get("streams") or []
        for name in known:
            await self._call(f"STREAM.DELETE.{name}")
        if streams:
            for config in self._configs:
                await self._create(config)

    def stage(self) -> FaultyStage:
        """Give the next performance its folder."""
        self._performances += 1
        return FaultyStage(self.folder / f"performance-{self._performances:04}", self.server, **self.settings)

    async def interrupted(self, stage: FaultyStage) -> list[tuple[str, str]]:
        """Play the first act until the stage's tracer ends the worker; returns the commands that the broker has accepted."""
        await self.clear()
        accepted = await canonical.publish(self.agent, canonical.first_act())
        await stage.begin()
        await stage.over()
        return accepted

    async def finished(self, stage: FaultyStage, accepted: list[tuple[str, str]]) -> None:
        """Play an interrupted scenario to its end, undisturbed, and make sure that all is well."""
        async with canonical.audience(self.agent) as heard:
            await stage.start()
            # What was published before this audience came is in the stream.
            heard.ids |= {sent.headers["Nats-Msg-Id"] for sent in await stage.events(self.agent)}
            # A delegate that was not there when it was asked is asked again after up to two minutes.
            accepted += await canonical.played(self.agent, heard, within=150)
        assert await checks.violations(stage, self.agent, accepted=accepted, clean_logs=False) == []
        with stage.database() as database:
            assert canonical.verdict(database) == []

    async def perform(self, stage: FaultyStage, *, clean_logs: bool = True, within: float = 60.0) -> list[str]:
        """Play the canonical scenario through whatever the stage's tracers do; returns all that is wrong afterwards."""
        await self.clear()
        accepted = await canonical.publish(self.agent, canonical.first_act())
        over = asyncio.Event()
        try:
            async with canonical.audience(self.agent) as heard, asyncio.TaskGroup() as group:
                await stage.begin()
                group.create_task(stage.survive(over))
                accepted += await canonical.played(self.agent, heard, within=within)
                over.set()
            assert await stage.end() == 0
            self.published = sum(len(act) for act in (canonical.first_act(), *canonical.later_acts()))
            bad = await checks.violations(stage, self.agent, accepted=accepted, clean_logs=clean_logs)
            with stage.database() as database:
                bad += canonical.verdict(database)
        finally:
            if stage.running:
                await stage.kill()
        if not bad:
            for left in stage.folder.glob("flows.db*"):  # some megabytes each
                left.unlink()
        return bad
