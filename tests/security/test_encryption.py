"""Where encryption is asked for and none is offered, not a byte is said: no login, no payload, at the start and ever after.

One test for each way to ask and each program that connects; the server is one that keeps every byte it gets.
"""

from __future__ import annotations

import asyncio
import ssl
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from nats_taskflow.bus.nats.client import PatchedClient
from nats_taskflow.bus.nats.connection import NatsConnection
from nats_taskflow.bus.nats.options import NatsOptions
from nats_taskflow.client import Agent, DelegateCall, FlowClient, serve_delegate
from nats_taskflow.client.errors import Unavailable
from nats_taskflow.client.mcp.lazy_client import LazyClient, Owner
from nats_taskflow.client.nats import NatsTransport
from nats_taskflow.client.transport import Lost
from nats_taskflow.errors import BusLost
from tests.eventually import eventually
from tests.security.greeting import Greeter, certificate

PASSWORD = "pa55-in-clear"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate and its key."""
    return certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def encrypting(pair: tuple[Path, Path]) -> ssl.SSLContext:
    """What a server encrypts with."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pair)
    return context


def options(port: int, *, scheme: str = "nats", user: str = "kate", **more: object) -> NatsOptions:
    """How to reach the server, with a password."""
    return NatsOptions(servers=(f"{scheme}://127.0.0.1:{port}",), user=user, password=PASSWORD, **more)  # type: ignore[arg-type]  # whatever it takes


async def by_worker(made: NatsOptions) -> None:
    """Connect as the worker and the command line do."""
    await NatsConnection(made).open()


async def by_client(made: NatsOptions) -> None:
    """Connect as `FlowClient` does."""
    await NatsTransport.reach(made)


async def by_mcp(made: NatsOptions) -> None:
    """Connect as the MCP server does."""
    await LazyClient(Owner("kate"), lambda: NatsTransport.reach(made)).flows()


@pytest.mark.parametrize("connect", [by_worker, by_client, by_mcp])
@pytest.mark.parametrize("asked", ["tls://", "tls_ca", "tls_cert"])
async def test_nothing_is_said_to_a_server_that_offers_no_encryption(
    connect: Callable[[NatsOptions], Awaitable[None]], asked: str, pair: tuple[Path, Path]
) -> None:
    cert, key = map(str, pair)
    async with Greeter() as server:
        ways = {
            "tls://": options(server.port, scheme="tls"),
            "tls_ca": options(server.port, tls_ca=cert),
            "tls_cert": options(server.port, tls_cert=cert, tls_key=key),
        }
        with pytest.raises((BusLost, Lost, Unavailable), match="encryption"):
            await connect(ways[asked])
        assert server.greeted == 1, "refused at once, not tried again until the time is up"
    assert server.clear == b""


async def test_agents_and_delegates_refuse_as_the_client_does() -> None:
    async with Greeter() as server:
        where = f"tls://kate:{PASSWORD}@127.0.0.1:{server.port}"
        with pytest.raises(Lost, match="encryption"):
            async with FlowClient.connect(where, agent="kate"):
                pass

        async def pay(asked: DelegateCall) -> Any:
            return asked.payload

        with pytest.raises(Lost, match="encryption"):
            async with serve_delegate("svc.pay", pay, on=where):
                pass
        with pytest.raises(Lost, match="encryption"):
            await Agent(where, name="kates-loop", agent="kate").run()
    assert server.clear == b""


@pytest.mark.e2e
@pytest.mark.parametrize("command", [("run",), ("provision",), ("flow", "list"), ("events", "--follow"), ("doctor",)])
async def test_every_command_exits_as_not_connected_and_says_nothing(command: tuple[str, ...], tmp_path: Path) -> None:
    async with Greeter() as server:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "nats_taskflow", *command),
            *("--nats-url", f"tls://kate:{PASSWORD}@127.0.0.1:{server.port}"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd=tmp_path,
        )
        said, _ = await process.communicate()
        assert b"encryption" in said
        assert b"Traceback" not in said
        assert process.returncode == (1 if command == ("doctor",) else 69), said
    assert server.greeted
    assert server.clear == b""


async def test_a_server_that_stops_offering_it_is_told_neither_login_nor_what_was_pending(
    pair: tuple[Path, Path], encrypting: ssl.SSLContext
) -> None:
    async with Greeter(encrypting) as server:
        connection = NatsConnection(options(server.port, tls_ca=str(pair[0])))
        await connection.open()
        assert server.encrypted == 1
        server.context = None
        server.hang_up()
        await eventually(lambda: not connection.connected)
        await connection.client.publish("taskflow.api.kate.start", b"a payload")
        await eventually(lambda: server.greeted >= 3)
        await connection.close()
        assert (server.clear, len(server.logins)) == (b"", 1)


async def test_it_goes_on_once_the_server_encrypts_again(pair: tuple[Path, Path], encrypting: ssl.SSLContext) -> None:
    async with Greeter(encrypting) as server:
        connection = NatsConnection(options(server.port, tls_ca=str(pair[0])))
        await connection.open()
        server.context = None
        server.hang_up()
        await eventually(lambda: server.greeted >= 2)
        server.context = encrypting
        await eventually(lambda: connection.connected)
        await connection.close()
        assert (server.clear, server.encrypted) == (b"", 2)


async def test_a_server_that_another_one_tells_of_has_to_encrypt_too(pair: tuple[Path, Path], encrypting: ssl.SSLContext) -> None:
    async with Greeter() as other, Greeter(encrypting, connect_urls=[f"127.0.0.1:{other.port}"]) as server:
        connection = NatsConnection(options(server.port, tls_ca=str(pair[0])))
        await connection.open()
        await server.stop()
        await eventually(lambda: other.greeted >= 2)
        await connection.close()
        await server.listen()
        assert (server.clear, other.clear) == (b"", b"")


async def test_encryption_that_the_server_leaves_to_the_client_is_taken(pair: tuple[Path, Path], encrypting: ssl.SSLContext) -> None:
    async with Greeter(encrypting, tls_required=False, tls_available=True) as server:
        connection = NatsConnection(options(server.port, tls_ca=str(pair[0])))
        await connection.open()
        await connection.close()
        assert (server.clear, server.encrypted) == (b"", 1)


async def test_a_connection_that_is_encrypted_from_its_first_byte_is_encrypted(pair: tuple[Path, Path], encrypting: ssl.SSLContext) -> None:
    context = ssl.create_default_context(cafile=str(pair[0]))
    async with Greeter(encrypting, first=True, tls_required=False) as server:
        client = PatchedClient()
        await client.connect(f"tls://127.0.0.1:{server.port}", tls=context, tls_handshake_first=True, user="kate", password=PASSWORD)
        await client.close()
        assert (server.clear, server.encrypted) == (b"", 1)


@pytest.mark.parametrize("connect", [by_worker, by_client])
async def test_the_handshake_comes_first_where_that_is_asked_for(
    connect: Callable[[NatsOptions], Awaitable[None]], pair: tuple[Path, Path], encrypting: ssl.SSLContext
) -> None:
    async with Greeter(encrypting, first=True) as server:
        await connect(options(server.port, tls_ca=str(pair[0]), tls_first=True))
        assert (server.clear, server.encrypted) == (b"", 1)


@pytest.mark.parametrize("scheme", ["nats", "tls"])
async def test_a_handshake_that_is_to_come_first_asks_for_encryption(scheme: str) -> None:
    async with Greeter() as server:
        with pytest.raises(
            BusLost, match="handshake_first" if sys.version_info >= (3, 12) else "no answer"
        ):  # 3.11's asyncio does not say why
            await by_worker(options(server.port, scheme=scheme, tls_first=True))
        assert PASSWORD.encode() not in server.clear


async def test_without_a_word_of_encryption_it_connects_in_clear() -> None:
    async with Greeter() as server:
        connection = NatsConnection(options(server.port))
        await connection.open()
        await connection.close()
    assert server.logins[0]["pass"] == PASSWORD


@pytest.mark.parametrize(
    "userinfo, sent",
    [
        ("kate:p%40ss%2Fw%25rd", {"user": "kate", "pass": "p@ss/w%rd"}),
        ("k%3Ate:p+ss%20w%C3%B6rd", {"user": "k:te", "pass": "p+ss wörd"}),
        ("t%40ken%3A", {"auth_token": "t@ken:"}),
        ("kate:100%", {"user": "kate", "pass": "100%"}),
    ],
)
@pytest.mark.parametrize("connect", ["worker", "client"])
async def test_user_password_and_token_in_a_url_are_decoded(userinfo: str, sent: dict[str, str], connect: str) -> None:
    async with Greeter() as server:
        where = f"nats://{userinfo}@127.0.0.1:{server.port}"
        if connect == "worker":
            connection = NatsConnection(NatsOptions(servers=(where,)))
            await connection.open()
            await connection.close()
        else:
            await (await NatsTransport.connect(where)).close()
    login = server.logins[0]
    assert {name: login[name] for name in ("user", "pass", "auth_token") if name in login} == sent
