"""Run `taskflow` as a person does: a process of its own, with the settings of the stage."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from typing import NamedTuple

from tests.e2e.stage import Json, World


class Said(NamedTuple):
    """What a command said, and how it ended."""

    out: str
    err: str
    code: int

    @property
    def json(self) -> Json:
        """Its one JSON object."""
        decoded: Json = json.loads(self.out)
        return decoded

    @property
    def items(self) -> list[Json]:
        """The items of its list."""
        found: list[Json] = self.json["items"]
        return found


async def command(stage: World, *arguments: str, code: int = 0, stdin: str = "", **changes: str) -> Said:
    """Run a command to its end, which has to be `code`."""
    pipe = asyncio.subprocess.PIPE
    whole = (sys.executable, "-m", "nats_taskflow", *arguments)
    environment = stage.environment(**changes) | {"COLUMNS": "200"}
    process = await asyncio.create_subprocess_exec(*whole, stdin=pipe, stdout=pipe, stderr=pipe, env=environment, cwd=stage.folder)
    try:
        async with asyncio.timeout(60):
            out, err = await process.communicate(stdin.encode())
    except BaseException:
        process.kill()
        await process.wait()
        raise
    said = Said(out.decode(), err.decode(), process.returncode or 0)
    assert said.code == code, f"taskflow {' '.join(arguments)}: {said}"
    assert "Traceback" not in said.err, said.err
    return said


async def asked(stage: World, *arguments: str, code: int = 0) -> Said:
    """Run a command that answers in JSON."""
    return await command(stage, *arguments, "-o", "json", code=code)


async def ended_quietly(process: asyncio.subprocess.Process) -> None:
    """Interrupt a program, which then ends by itself and says nothing."""
    try:
        process.send_signal(signal.SIGINT)
        _, said = await asyncio.wait_for(process.communicate(), 60)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert (process.returncode, said.decode()) == (0, "")
