"""Setting it up as `deploy/nats/README.md` says, and what changes later: another agent, and a consumer that somebody deleted."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import sys
import textwrap
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from nats_taskflow.bus.nats.server import find_server
from tests.eventually import eventually
from tests.ports import kept_port
from tests.security.guarded import TEMPLATES, Guarded, new_key

pytestmark = pytest.mark.e2e

_BLOCK = re.compile(r"^ *```sh\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
_PATIENCE = 40.0


def steps() -> list[str]:
    """Return the commands of the README, step by step."""
    return [textwrap.dedent(block) for block in _BLOCK.findall((TEMPLATES / "README.md").read_text(encoding="utf-8"))]


async def shell(commands: str, folder: Path, environment: Mapping[str, str]) -> asyncio.subprocess.Process:
    """Start commands of the README in a folder."""
    return await asyncio.create_subprocess_exec(
        *("bash", "-euo", "pipefail", "-c", commands),
        cwd=folder,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def done(commands: str, folder: Path, environment: Mapping[str, str]) -> None:
    """Run commands of the README to their end."""
    process = await shell(commands, folder, environment)
    async with asyncio.timeout(_PATIENCE):
        _, told = await process.communicate()
    assert process.returncode == 0, told.decode()


def environment(**more: str) -> dict[str, str]:
    """Return an environment with Python, taskflow and nats-server on the path."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("TASKFLOW_", "NATS_"))}
    return {**clean, "PATH": f"{Path(sys.executable).parent}:{find_server().parent}:{clean['PATH']}", **more}


@asynccontextmanager
async def serving(commands: str, folder: Path, environment: Mapping[str, str]) -> AsyncIterator[None]:
    """Run a server of the README meanwhile."""
    process = await shell(f"exec {commands}", folder, environment)
    try:
        yield
    finally:
        process.terminate()
        await process.communicate()


async def warned(commands: str, folder: Path, environment: Mapping[str, str]) -> list[str]:
    """Start the worker of the README, and stop it once it is ready; return its warnings."""
    worker = await shell(f"exec env {commands}", folder, environment)
    assert worker.stdout is not None
    async with asyncio.timeout(_PATIENCE):
        ready = await worker.stdout.readline()
        if ready:
            worker.send_signal(signal.SIGTERM)
        _, told = await worker.communicate()
    assert worker.returncode == 0, told.decode()
    assert json.loads(ready)["event"] == "ready"
    return [line for line in told.decode().splitlines() if json.loads(line)["level"] not in {"debug", "info"}]


@pytest.mark.page
async def test_the_steps_of_the_readme_lead_to_a_worker_that_warns_of_nothing(tmp_path: Path) -> None:
    folder = shutil.copytree(TEMPLATES, tmp_path / "copy")
    nats, monitor, streams = f"127.0.0.1:{kept_port()}", f"127.0.0.1:{kept_port()}", str(tmp_path / "jetstream")
    conf = folder / "nats-server.conf"
    text = conf.read_text(encoding="utf-8").replace("127.0.0.1:4222", nats).replace("127.0.0.1:8222", monitor)
    conf.write_text(text.replace("/var/lib/nats/jetstream", streams), encoding="utf-8")
    keys, check, place, serve, provision, run, claim = steps()
    await done(keys, folder, environment())
    assert "REPLACE" not in (folder / "nkeys.conf").read_text(encoding="utf-8")
    assert {path.stat().st_mode & 0o777 for path in folder.glob("*.nk")} == {0o600}
    await done(place.replace("sudo ", "").replace("/var/lib/nats/jetstream", streams), folder, environment())
    await done(check, folder, environment())
    settings = environment(
        TASKFLOW_NATS_URL=f"nats://{nats}",
        TASKFLOW_NATS_CONNECT_TIMEOUT="60s",
        TASKFLOW_HTTP_BIND="off",
        TASKFLOW_STORE_PATH=str(tmp_path / "flows.db"),
    )
    async with serving(serve, folder, settings):
        await done(provision, folder, settings)
        told = await warned(run, folder, settings)
        advice = re.findall(r"taskflow provision[^`]*", "".join(told))
        (database,) = {one.removeprefix("taskflow provision --database ") for one in advice}
        await done(claim.replace("DATABASE=ID", f"DATABASE={database}"), folder, settings)
        assert await warned(run, folder, settings) == []


@pytest.mark.page
async def test_another_agent_is_a_copied_block_and_a_reload(tmp_path: Path) -> None:
    async with Guarded(tmp_path) as stage:
        kate = await stage.agent("kate")
        stage.keys["bob"] = key = new_key(tmp_path, "bob")
        copy_of_ann(stage.folder / "nats" / "permissions.conf")
        with (stage.folder / "nats" / "nkeys.conf").open("a", encoding="utf-8") as keys:
            keys.write(f'NKEY_BOB: "{key.public}"\n')
        assert stage.server.pid is not None
        os.kill(stage.server.pid, signal.SIGHUP)  # what `nats-server --signal reload` sends
        log = stage.folder / "nats" / "nats-server.log"
        await eventually(lambda: "Reloaded server configuration" in log.read_text(encoding="utf-8"), within=20.0)
        bob = await stage.agent("bob")
        assert (await bob.flow(await bob.start()))["owner_session_key"] == "agent:bob:session:main"
        assert (await kate.flow(await kate.start()))["status"] == "running"


def copy_of_ann(permissions: Path) -> None:
    """Copy the block of the agent `ann` for `bob`."""
    text = permissions.read_text(encoding="utf-8")
    block = re.search(r"    \{\n      nkey: \$NKEY_ANN\n.*?\n    \}\n", text, re.DOTALL)
    assert block is not None
    copy = block[0].replace("NKEY_ANN", "NKEY_BOB").replace(".ann.", ".bob.")
    permissions.write_text(text.replace(block[0], block[0] + copy), encoding="utf-8")


async def test_a_worker_whose_consumer_was_deleted_goes_on_once_it_is_provisioned_again(tmp_path: Path) -> None:
    async with Guarded(tmp_path) as stage:
        kate = await stage.agent("kate")
        provisioner = await stage.connect("provisioner")
        await provisioner.jetstream().delete_consumer("TASKFLOW_IN", "worker")
        await kate.cmd("start", {"controller_id": "kate/x", "goal": "later"}, "while-it-was-gone")
        await eventually(lambda: "pull.not_recreated" in "".join(log.read_text() for log in stage.logs()), within=_PATIENCE)
        assert (await stage.provision()).code == 0
        assert (await kate.outcome("while-it-was-gone", within=_PATIENCE))["ok"]
