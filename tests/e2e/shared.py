"""One broker and one worker for all tests of a process that neither end nor reconfigure them, and look only at what is their own.

In the end every invariant is checked of what they have left behind together.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from tests.e2e import checks
from tests.e2e.stage import Stage, World

T = TypeVar("T")

_PATIENCE = 60.0
_SHOWN = 40


class SharedStage:
    """A stage that outlives its tests. Each test has an event loop of its own; this has one too, in a thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stages: list[Stage] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="shared-stage", daemon=True)
        self._thread.start()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something in the stage's own loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_PATIENCE)

    def stage(self) -> Stage:
        """Return the stage; the first test makes it, as does the next one after a test that has cost the worker its life."""
        if not self._stages or not self._stages[-1].running:
            folder = self._folder / f"stage-{len(self._stages)}"
            folder.mkdir()
            stage = Stage(folder)
            self._run(stage.__aenter__())
            self._stages.append(stage)
        return self._stages[-1]

    @asynccontextmanager
    async def visit(self, folder: Path) -> AsyncIterator[World]:
        """Give a test a folder and connections of its own; show what the worker said meanwhile, and see that it lives."""
        stage = await asyncio.to_thread(self.stage)
        world = World(folder, stage.server, stage.settings, home=stage.folder)
        world.ready = stage.ready
        (log,) = stage.logs()
        said = log.stat().st_size
        try:
            yield world
        finally:
            await world.leave()
            with log.open("rb") as file:
                file.seek(said)
                lines = file.read().decode(errors="replace").splitlines()
            sys.stdout.write("\n".join([f"--- {log.name}", *lines[-_SHOWN:], ""]))
        assert stage.running, "the worker that others share has ended during this test"

    def close(self) -> list[str]:
        """End everything; return what does not hold of what all the tests together have left behind."""
        bad = [violation for stage in self._stages for violation in self._run(_ended(stage))]
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_PATIENCE)
        self._loop.close()
        return bad


async def _ended(stage: Stage) -> list[str]:
    """End a stage and return what does not hold of it; of one whose worker was killed nothing is known."""
    try:
        return await checks.violations(stage, await stage.agent("auditor")) if stage.running else []
    finally:
        await stage.close()
