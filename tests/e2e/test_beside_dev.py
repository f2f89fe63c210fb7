"""Beside a healthy `taskflow dev`, in its folder: the commands find its database, and nobody is warned of what is well."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.e2e.commands import Said
from tests.eventually import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


class Dev:
    """A running `taskflow dev`, and what a person types in its folder in another terminal."""

    def __init__(self, folder: Path, url: str = "", pid: int = 0) -> None:
        self.folder = folder
        self.url = url
        self.pid = pid

    @property
    def environment(self) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("TASKFLOW_", "NATS_"))}
        return clean | {"HOME": str(self.folder), "TASKFLOW_HTTP_BIND": "127.0.0.1:0"} | ({"NATS_URL": self.url} if self.url else {})

    async def typed(self, *arguments: str, code: int = 0) -> Said:
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "nats_taskflow", *arguments, stdout=pipe, stderr=pipe, env=self.environment, cwd=self.folder
        )
        async with asyncio.timeout(60):
            out, err = await process.communicate()
        said = Said(out.decode(), err.decode(), process.returncode or 0)
        assert said.code == code, said
        return said


@pytest.fixture
async def dev(tmp_path: Path) -> AsyncIterator[Dev]:
    pipe = asyncio.subprocess.PIPE
    with (tmp_path / "dev.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "nats_taskflow", "dev", stdout=pipe, stderr=log, env=Dev(tmp_path).environment, cwd=tmp_path
        )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(60):
            ready = json.loads(await process.stdout.readline())
        yield Dev(tmp_path, ready["nats"], ready["pid"])
    finally:
        process.terminate()
        await process.wait()


async def test_what_a_newcomer_needs_is_said_last_and_in_one_piece(dev: Dev) -> None:
    async def said() -> list[str]:
        return (dev.folder / "dev.log").read_text(encoding="utf-8").splitlines()

    async def greeted() -> bool:
        return any("Stop: Ctrl-C" in line for line in await said())

    await eventually(greeted, within=30)
    lines = await said()
    logged = [at for at, line in enumerate(lines) if line.startswith("{")]
    begun, ended = (next(at for at, line in enumerate(lines) if word in line and at not in logged) for word in ("NATS", "Stop: Ctrl-C"))
    assert next(at for at in logged if json.loads(lines[at])["event"] == "worker.ready") < begun
    assert [at for at in logged if begun < at < ended] == []


async def test_of_two_databases_none_is_taken_for_the_other(dev: Dev) -> None:
    (dev.folder / "taskflow.db").touch()
    for command in ("check", "backup"):
        assert "--store-path" in (await dev.typed("db", command, code=78)).err
    await dev.typed("db", "check", "--store-path", ".taskflow/flows.db")


async def test_the_doctor_has_nothing_to_warn_of(dev: Dev) -> None:
    report = (await dev.typed("doctor", "-o", "json")).json
    assert [check for check in report["checks"] if check["level"] != "ok" and check["name"] != "disk"] == []
    assert str(dev.folder / ".taskflow" / "flows.db") in next(c["text"] for c in report["checks"] if c["name"] == "database file")


async def test_the_commands_of_the_database_find_the_one_that_dev_made(dev: Dev) -> None:
    assert "flows.db" in (await dev.typed("db", "check")).out
    await dev.typed("db", "backup", "copy.db")
    assert (dev.folder / "copy.db").is_file()
    assert "schema" in (await dev.typed("db", "migrate", "--check")).out
    await dev.typed("db", "export")
    (dev.folder / "taskflow.db").touch()
    assert "taskflow.db" in (await dev.typed("db", "check", code=78)).err, "a database of `taskflow run` in the folder is meant before"


async def test_a_folder_that_somebody_else_can_write_to_is_not_believed(dev: Dev) -> None:
    (dev.folder / ".taskflow").chmod(0o777)
    await dev.typed("db", "check", code=78)


async def test_a_second_one_in_the_folder_ends_as_taken_and_names_the_first(dev: Dev) -> None:
    dev.url = ""  # as in a new terminal
    said = await dev.typed("dev", code=75)
    assert f"pid {dev.pid}" in said.err
    assert (await dev.typed("db", "check", "-o", "json", code=0)).json["worker"] == dev.pid


async def test_a_worker_that_is_refused_beside_it_names_it_and_leaves_no_database(dev: Dev) -> None:
    said = await dev.typed("run", "--http-bind", "off", code=75)
    assert f"pid {dev.pid}" in said.err
    assert not (dev.folder / "taskflow.db").exists()
