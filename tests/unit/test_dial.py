"""What no attempt to connect can mend is refused before the first one."""

from __future__ import annotations

import importlib.util
import socket
from typing import Any

import pytest
from nats.aio.client import Client

from nats_taskflow.bus.nats.dial import dial
from nats_taskflow.bus.nats.options import NatsOptions
from nats_taskflow.client import FlowClient, Lost
from nats_taskflow.errors import ConfigError


@pytest.fixture(autouse=True)
def _nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a socket is made."""

    def made(*_: object, **__: object) -> None:
        raise AssertionError("it dialled")

    monkeypatch.setattr(socket, "getaddrinfo", made)
    monkeypatch.setattr(socket.socket, "connect", made)


async def ignored(_: Exception) -> None:
    """Take no note."""


@pytest.mark.parametrize(
    "servers, is_installed, word",
    [
        (("wss://127.0.0.1:1",), False, "aiohttp"),
        (("ws://127.0.0.1:1", "ws://127.0.0.1:2"), False, "aiohttp"),
        (("nats://127.0.0.1:1", "ws://127.0.0.1:2"), True, "both"),
        (("nats://127.0.0.1:1", "wss://127.0.0.1:2"), False, "both"),
    ],
)
async def test_addresses_that_no_attempt_can_reach_are_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, servers: tuple[str, ...], is_installed: bool, word: str
) -> None:
    find = importlib.util.find_spec
    there = find("socket") if is_installed else None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: there if name == "aiohttp" else find(name))
    with pytest.raises(ConfigError, match=word) as refused:
        await dial(Client(), NatsOptions(servers=servers), ignored, reconnect_wait=0.1)
    assert refused.value.exit_code == 78


@pytest.mark.parametrize("field", ["creds", "nkey_seed", "tls_ca", "tls_cert", "tls_key"])
async def test_a_secret_in_the_place_of_its_file_is_refused_by_the_fields_name_and_not_repeated(field: str) -> None:
    seed = "SUA" + "B" * 55
    for pasted in (seed, f"-----BEGIN USER NKEY SEED-----\n{seed}\n"):
        options: dict[str, Any] = {field: pasted}
        with pytest.raises(Lost, match=f"^{field}: .*path") as refused:
            async with FlowClient.connect("nats://127.0.0.1:4222", agent="kate", **options):
                pass
        assert seed not in str(refused.value)


async def test_a_credential_file_that_is_not_there_is_refused_by_the_fields_name() -> None:
    with pytest.raises(Lost, match=r"^creds: .*/nowhere/kate\.creds"):
        async with FlowClient.connect("nats://127.0.0.1:4222", agent="kate", creds="/nowhere/kate.creds"):
            pass
