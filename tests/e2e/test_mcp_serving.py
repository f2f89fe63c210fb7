"""`taskflow mcp` as a process: over stdio and over HTTP, and what docs/mcp.md tells people to type."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import click
import httpx2
import pytest
from mcp import Client
from mcp.client.stdio import StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

from nats_taskflow.cli import taskflow
from tests.e2e.stage import TOPIC, Agent, World
from tests.security.guarded import Guarded

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

Json = dict[str, Any]
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "mcp.md").read_text(encoding="utf-8")
TOKEN = "correct-horse-battery"
_PATIENCE = 60.0
_BLOCK = re.compile(r"^<!-- (stdio|http) -->\n```json\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SHELL = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
POST = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
PING = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}


def environment(world: World, **more: str) -> dict[str, str]:
    """The environment of a client's user."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("TASKFLOW_", "NATS_"))}
    return {**clean, "PYTHONPATH": str(ROOT), "NATS_URL": world.url, **more}


def started_by_a_client(world: World, folder: Path, *arguments: str) -> StdioServerParameters:
    """The server as a client starts it."""
    return StdioServerParameters(command=sys.executable, args=["-m", "nats_taskflow", *arguments], env=environment(world), cwd=folder)


@asynccontextmanager
async def served(
    world: World, agent: Agent, folder: Path, *arguments: str, **more: str
) -> AsyncIterator[tuple[str, asyncio.subprocess.Process]]:
    """The server over HTTP, as a process; gives its URL."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "nats_taskflow", "mcp", "--agent", agent.name, *arguments),
        env=environment(world, **more),
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        ready = json.loads(await asyncio.wait_for(process.stdout.readline(), _PATIENCE))
        assert (ready["event"], ready["owner"]) == ("ready", f"agent:{agent.name}:session:main")
        yield ready["url"], process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def story(client: Client, agent: Agent) -> None:
    """Start, wait, reply, status, finish."""

    async def call(action: str, **arguments: Any) -> Json:
        result = await client.call_tool("taskflow", {"action": action, **arguments})
        assert not result.is_error, result.content
        flow: Json = result.structured_content["flow"]
        return flow

    flow = await call("start", controller_id="kate/test", goal="test")
    parked = await call("wait", flow_id=flow["id"], wait_condition={"kind": "external_event", "topic": TOPIC})
    await agent.reply(TOPIC, parked["wait"]["correlation_id"], {"answer": 42})
    await agent.until(flow["id"], "running")
    assert (await call("status", flow_id=flow["id"]))["state"]["resume_event"] == {"answer": 42}
    assert (await call("finish", flow_id=flow["id"]))["status"] == "finished"


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_the_whole_story_over_stdio(world: World, agent: Agent, tmp_path: Path, mode: str) -> None:
    async with Client(started_by_a_client(world, tmp_path, "mcp", "--agent", agent.name), mode=mode) as client:
        await story(client, agent)
        assert f"agent:{agent.name}:session:main" in (client.instructions or "")


async def test_over_stdio_it_ends_with_0_when_the_client_closes_stdin(world: World, tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "nats_taskflow", "mcp", "--agent", "kate"),
        env=environment(world),
        cwd=tmp_path,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    printed, told = await asyncio.wait_for(process.communicate(b""), _PATIENCE)
    assert (process.returncode, printed, told) == (0, b"", b"")


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_the_whole_story_over_http(world: World, agent: Agent, tmp_path: Path, mode: str) -> None:
    async with served(world, agent, tmp_path, "--http", "127.0.0.1:0") as (url, process):
        async with Client(url, mode=mode) as client:
            await story(client, agent)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), _PATIENCE) == 0


async def answered(url: str, **headers: str) -> int:
    """The status of an answer to a request with these headers."""
    async with httpx2.AsyncClient() as client:
        return (await client.post(url, json=PING, headers={**POST, **headers})).status_code


async def test_over_http_only_this_machine_is_answered(world: World, agent: Agent, tmp_path: Path) -> None:
    async with served(world, agent, tmp_path, "--http", "127.0.0.1:0") as (url, _):
        port = url.split(":")[2].split("/")[0]
        assert await answered(url) == 200
        assert await answered(url, Host=f"localhost:{port}") == 200
        for page in (f"http://localhost:{port}", "http://localhost:3000", f"http://127.0.0.1:{port}", "http://[::1]:3000"):
            assert await answered(url, Origin=page) == 403, "a page of this machine is let in where it is listed only"
        assert await answered(url, Host="evil.example.com") == 421
        assert await answered(url, Host=f"evil.example.com:{port}") == 421
        assert await answered(url, Host=f"127.0.0.1.evil.example.com:{port}") == 421
        assert await answered(url, Origin="https://evil.example.com") == 403
        assert await answered(url, Origin=f"http://localhost.evil.example.com:{port}") == 403
        assert await answered(url, Origin="null") == 403


async def test_over_http_a_host_and_an_origin_can_be_let_in(world: World, agent: Agent, tmp_path: Path) -> None:
    listed = ("--allow-origin", "https://chat.example.com", "--allow-origin", "http://localhost:3000")
    more = ("--allow-host", "flows.example.com", *listed)
    async with served(world, agent, tmp_path, "--http", "127.0.0.1:0", *more) as (url, _):
        assert await answered(url, Host="flows.example.com", Origin="https://chat.example.com") == 200
        assert await answered(url, Origin="http://localhost:3000") == 200
        assert await answered(url, Origin="http://localhost:3001") == 403
        assert await answered(url, Host="flows.example.com:1") == 421
        assert await answered(url, Origin="https://chat.example.com.evil.org") == 403


async def test_connections_that_never_come_to_an_end_keep_no_agent_out(world: World, agent: Agent, tmp_path: Path) -> None:
    head = b"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    begun = (
        b"",
        head,
        head + b"Content-Length: 100000\r\n\r\n{",
        b"GET /mcp HTTP/1.1\r\nHost: localhost:1\r\nAccept: text/event-stream\r\n\r\n",
    )
    async with served(world, agent, tmp_path, "--http", "127.0.0.1:0") as (url, _):
        port = int(url.split(":")[2].split("/")[0])
        for what in begun:
            held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(230)]
            for _, writer in held:
                writer.write(what)
            await asyncio.gather(*(writer.drain() for _, writer in held), return_exceptions=True)
            assert [await answered(url) for _ in range(5)] == [200] * 5, what
            for _, writer in held:
                writer.close()


async def test_over_http_beyond_loopback_only_the_token_and_the_name_let_in(world: World, agent: Agent, tmp_path: Path) -> None:
    more = ("--http", "0.0.0.0:0", "--http-token", "env:MCP_TOKEN", "--allow-host", "flows.example.com")
    async with served(world, agent, tmp_path, *more, MCP_TOKEN=TOKEN) as (url, _):
        near = f"http://127.0.0.1:{url.rpartition(':')[2]}"
        host, bearer = {"Host": "flows.example.com"}, {"Authorization": f"Bearer {TOKEN}"}
        assert await answered(near, **host) == 401
        assert await answered(near, **host, Authorization="Bearer wrong-horse-battery") == 401
        assert await answered(near, **host, Authorization=TOKEN) == 401
        assert await answered(near, **bearer) == 421, "nobody was told to call it 127.0.0.1"
        assert await answered(near, **host, **bearer) == 200
        async with (
            httpx2.AsyncClient(headers={**host, **bearer}) as http,
            Client(streamable_http_client(near, http_client=http)) as client,
        ):
            await story(client, agent)


async def test_over_http_a_port_that_is_taken_is_said_in_one_line(world: World, agent: Agent, tmp_path: Path) -> None:
    async with served(world, agent, tmp_path, "--http", "127.0.0.1:0") as (url, _):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "nats_taskflow", "mcp", "--agent", "kate", "--http", url.removeprefix("http://").removesuffix("/mcp")),
            env=environment(world),
            cwd=tmp_path,
            stderr=asyncio.subprocess.PIPE,
        )
        _, told = await asyncio.wait_for(process.communicate(), _PATIENCE)
    assert process.returncode == 78
    assert re.fullmatch(r"taskflow: --http: .* port, .*\n", told.decode())


@pytest.mark.parametrize("block", [text for mark, text in _BLOCK.findall(PAGE) if mark == "stdio"])
async def test_a_client_that_is_configured_as_the_page_says_has_the_tools(world: World, tmp_path: Path, block: str) -> None:
    server = json.loads(block)["mcpServers"]["taskflow"]
    assert server["command"] == "taskflow"
    async with Client(started_by_a_client(world, tmp_path, *server["args"])) as client:
        tools = [tool.name for tool in (await client.list_tools()).tools]
        assert all(name.startswith("taskflow") for name in tools)
        listing = ("taskflow_list_mine", {}) if "--split-tools" in server["args"] else ("taskflow", {"action": "list_mine"})
        assert (await client.call_tool(*listing)).structured_content["ok"] is True


async def test_a_client_that_is_configured_for_http_as_the_page_says_has_the_tools(world: World, agent: Agent, tmp_path: Path) -> None:
    (block,) = [text for mark, text in _BLOCK.findall(PAGE) if mark == "http"]
    server = json.loads(block)["mcpServers"]["taskflow"]
    assert server["type"] == "http"
    (told,) = [line for line in commands() if server["url"].split("/")[2] in line and "--http-token" in line]
    file = tmp_path / "token"
    file.write_text(TOKEN, encoding="utf-8")
    file.chmod(0o600)
    arguments = shlex.split(told)[2:]
    arguments[arguments.index("--agent") + 1] = agent.name
    arguments[arguments.index("--http") + 1] = "127.0.0.1:0"
    arguments[arguments.index("--http-token") + 1] = f"file:{file}"
    async with served(world, agent, tmp_path, *arguments) as (url, _):
        assert url.endswith("/mcp")
        assert server["url"].endswith("/mcp")
        assert await answered(url) == 401
        headers = {name: value.replace("${TASKFLOW_MCP_TOKEN}", TOKEN) for name, value in server["headers"].items()}
        async with httpx2.AsyncClient(headers=headers) as http, Client(streamable_http_client(url, http_client=http)) as client:
            await story(client, agent)


async def test_under_the_permissions_of_deploy_nats_the_page_s_command_works_and_another_agents_does_not(tmp_path: Path) -> None:
    (told,) = [line for line in commands() if "--nats-nkey" in line]
    arguments = shlex.split(told)[1:]
    async with Guarded(tmp_path) as stage:  # its folder has kate.nk
        async with Client(started_by_a_client(stage, tmp_path, *arguments)) as client:
            started = {"action": "start", "controller_id": "kate/test", "goal": "test"}
            flow = (await client.call_tool("taskflow", started)).structured_content["flow"]
            parking = {"action": "wait", "flow_id": flow["id"], "wait_condition": {"kind": "manual", "prompt": "Ann?"}}
            assert (await client.call_tool("taskflow", parking)).structured_content["flow"]["status"] == "waiting"
            assert flow["id"] in str((await client.read_resource("taskflow://waits")).contents)
            assert (await client.call_tool("taskflow", {"action": "cancel", "flow_id": flow["id"]})).structured_content["ok"] is True
        arguments[arguments.index("kate")] = "ann"
        async with Client(started_by_a_client(stage, tmp_path, *arguments)) as client:
            error = (await client.call_tool("taskflow", started)).structured_content["error"]
            assert error["code"] == "forbidden"
            assert "taskflow.cmd.ann.start" in error["message"]


def commands() -> list[str]:
    """The page's command lines; of a client's, what comes behind `--`."""
    lines = [line.partition("#")[0].strip() for block in _SHELL.findall(PAGE) for line in block.splitlines()]
    return [line.partition(" -- ")[2] or line for line in lines if not line.startswith("pip ")]


@pytest.mark.parametrize("line", commands())
def test_every_command_of_the_page_is_one(line: str) -> None:
    words = shlex.split(line)
    assert words[0] == "taskflow"
    command: click.Command = taskflow
    rest = words[1:]
    while isinstance(command, click.Group):
        found = command.get_command(click.Context(command), rest.pop(0))
        assert found is not None, line
        command = found
    command.make_context("taskflow", rest)
