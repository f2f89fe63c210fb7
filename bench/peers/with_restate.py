"""Restate: handlers that wait for an awakeable, resolved over the server's HTTP ingress. Server and service on the loopback interface."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import aiohttp
import restate
from hypercorn.asyncio import serve
from hypercorn.config import Config
from timing import Resumes, payload, timed, told

_PACKAGES = Path(sys.prefix) / "npm" / "node_modules" / "@restatedev"


def free_port() -> int:
    """Return a port that nobody uses."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


async def main(count: int, paced: int) -> None:
    """Measure."""
    resumes = Resumes()
    awakeables: dict[int, asyncio.Future[str]] = {}
    flows = restate.Service("Flows", inactivity_timeout=timedelta(seconds=60))

    @flows.handler()
    async def wait(ctx: restate.Context, number: int) -> None:
        """Wait for the reply."""
        name, reply = ctx.awakeable()
        if not awakeables[number].done():
            awakeables[number].set_result(name)
        await reply
        resumes.heard(number)

    ports = {name: free_port() for name in ("ingress", "admin", "node", "service")}
    settings = {
        "RESTATE_INGRESS__BIND_ADDRESS": f"127.0.0.1:{ports['ingress']}",
        "RESTATE_ADMIN__BIND_ADDRESS": f"127.0.0.1:{ports['admin']}",
        "RESTATE_BIND_ADDRESS": f"127.0.0.1:{ports['node']}",
        "RESTATE_ADVERTISED_ADDRESS": f"http://127.0.0.1:{ports['node']}",
        "RESTATE_BASE_DIR": str(Path.cwd() / "restate"),
        "RESTATE_DISABLE_TELEMETRY": "true",
        "RESTATE_LOG_FILTER": "error",
        "DO_NOT_TRACK": "1",
    }
    # The program itself: killing npm's wrapper leaves the server running.
    program = next(iter(_PACKAGES.glob("restate-server-*/bin/restate-server")), None)
    if program is None:
        told({"missing": "npm did not give @restatedev/restate-server"})
        return
    config = Config()
    config.bind = [f"127.0.0.1:{ports['service']}"]
    service = asyncio.ensure_future(serve(restate.app([flows]), config, shutdown_trigger=asyncio.Event().wait))  # type: ignore[arg-type]
    with Path("restate.log").open("wb") as log:
        server = subprocess.Popen([str(program)], env={**os.environ, **settings}, stdout=log, stderr=log)
    try:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=100)) as http:
            ingress, admin = (f"http://127.0.0.1:{ports[name]}" for name in ("ingress", "admin"))
            await answering(http, f"{admin}/health", server)
            registered = await http.post(f"{admin}/deployments", json={"uri": f"http://127.0.0.1:{ports['service']}"})
            assert registered.ok, await registered.text()

            async def park(number: int) -> None:
                awakeables[number] = asyncio.get_running_loop().create_future()
                async with http.post(f"{ingress}/Flows/wait/send", json=number) as answer:
                    assert answer.ok, await answer.text()
                await awakeables[number]

            async def resume(number: int) -> None:
                name = awakeables[number].result()
                async with http.post(f"{ingress}/restate/awakeables/{name}/resolve", json=payload(number)) as answer:
                    assert answer.ok, await answer.text()

            told(await timed(resumes, park, resume, count=count, paced=paced, rate=100))
    finally:
        server.kill()
        server.wait()
        service.cancel()


async def answering(http: aiohttp.ClientSession, url: str, server: subprocess.Popen[bytes]) -> None:
    """Return when the server answers."""
    async with asyncio.timeout(60):
        while server.poll() is None:
            try:
                async with http.get(url) as answer:
                    if answer.ok:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.1)
    raise RuntimeError(f"the server ended: {Path('restate.log').read_text(encoding='utf-8')[-500:]}")


asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
