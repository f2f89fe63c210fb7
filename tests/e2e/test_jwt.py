"""The worker and the commands log in with a user's JWT and its seed, as the `nats` CLI's NATS_JWT and NATS_SEED give them."""

from __future__ import annotations

import json
import os
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import nkeys
import pytest

from nats_taskflow.bus.nats.server import EmbeddedServer
from tests.e2e.commands import command
from tests.e2e.stage import Stage
from tests.eventually import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(180)]


class Signer:
    """An operator, account or user: a key that signs what others are."""

    def __init__(self, prefix: int) -> None:
        self.seed = nkeys.encode_seed(os.urandom(32), prefix).decode()
        self.key = nkeys.from_seed(bytearray(self.seed.encode()))
        self.public = self.key.public_key.decode()

    def jwt(self, kind: str, about: Signer, **claims: Any) -> str:
        """Say in a JWT what `about` is (github.com/nats-io/jwt, version 2)."""
        said = {"jti": about.public, "iat": 1_700_000_000, "iss": self.public, "sub": about.public, "name": kind}
        parts = ({"typ": "JWT", "alg": "ed25519-nkey"}, said | {"nats": {"type": kind, "version": 2, **claims}})
        text = ".".join(map(_written, parts))
        return f"{text}.{_base64(self.key.sign(text.encode()))}"


def _written(part: dict[str, Any]) -> str:
    return _base64(json.dumps(part, separators=(",", ":")).encode())


def _base64(data: bytes) -> str:
    return urlsafe_b64encode(data).decode().rstrip("=")


UNLIMITED = dict.fromkeys(
    ("subs", "data", "payload", "imports", "exports", "conn", "leaf", "mem_storage", "disk_storage", "streams", "consumer"), -1
)


class Decentral(Stage):
    """A stage whose server knows nobody but an operator: who a user is, the JWT says."""

    def __init__(self, folder: Path) -> None:
        operator, self.account, system = (
            Signer(p) for p in (nkeys.PREFIX_BYTE_OPERATOR, nkeys.PREFIX_BYTE_ACCOUNT, nkeys.PREFIX_BYTE_ACCOUNT)
        )
        self.user, self.stranger = Signer(nkeys.PREFIX_BYTE_USER), Signer(nkeys.PREFIX_BYTE_USER)
        accounts = {one.public: operator.jwt("account", one, limits=UNLIMITED | {"wildcards": True}) for one in (self.account, system)}
        accounts[system.public] = operator.jwt("account", system, limits=UNLIMITED | dict.fromkeys(("mem_storage", "disk_storage"), 0))
        config = (
            f"operator: {operator.jwt('operator', operator)}\nsystem_account: {system.public}\nresolver: MEMORY\n"
            f"resolver_preload: {{ {', '.join(f'{name}: {jwt}' for name, jwt in accounts.items())} }}"
        )
        self.jwt = self.account.jwt("user", self.user, subs=-1, data=-1, payload=-1)
        super().__init__(folder, server=EmbeddedServer(folder / "nats", extra_config=config))


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Decentral]:
    """A server, and a worker that logs in with a JWT from the environment and a seed from a file."""
    made = Decentral(tmp_path)
    seed = tmp_path / "worker.seed"
    seed.touch(mode=0o600)
    seed.write_text(made.user.seed + "\n", encoding="utf-8")
    made.settings |= {"NATS_JWT": made.jwt, "NATS_SEED": f"file:{seed}"}
    async with made:
        yield made


async def test_worker_and_commands_log_in_with_jwt_and_seed_and_again_after_an_outage(stage: Decentral) -> None:
    told = (await command(stage, "flow", "start", "--agent", "kate", "--controller-id", "kate/x", "--goal", "g", "-o", "json")).json
    assert told["flow"]["status"] == "running"
    await stage.server.restart(kill=True)

    async def answered() -> bool:
        try:
            shown = (await command(stage, "flow", "show", told["flow"]["id"], "-o", "json")).json
        except AssertionError:  # the worker is not back yet
            return False
        return bool(shown["id"] == told["flow"]["id"])

    await eventually(answered, within=60)
    shown = (await command(stage, "config", "show", "--origin")).out
    assert stage.jwt not in shown
    assert stage.user.seed not in shown
    assert "environment NATS_SEED" in shown


async def test_another_s_seed_and_half_of_the_pair_are_refused(stage: Decentral) -> None:
    wrong = await command(stage, "waits", code=69, NATS_SEED=stage.stranger.seed)
    assert "refuses the credentials" in wrong.err
    assert "nats.creds" in wrong.err
    (verdict,) = [
        check
        for check in (await command(stage, "doctor", "-o", "json", code=1, NATS_SEED=stage.stranger.seed)).json["checks"]
        if check["name"] == "nats"
    ]
    assert "nats.creds" in verdict["text"]
    assert "start" not in verdict["fix"]
    assert stage.stranger.seed not in wrong.err
    assert "nats.seed" in (await command(stage, "waits", code=78, NATS_SEED="")).err
    assert "different ways to log in" in (await command(stage, "waits", code=78, NATS_TOKEN="t")).err
