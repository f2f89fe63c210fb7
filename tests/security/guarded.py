"""A stage whose server is loaded with the files of `deploy/nats/` as they are: only the placeholders of the nkeys are filled in."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import nats
import nkeys
from nats.aio.client import Client
from nats.js.api import AckPolicy, ConsumerConfig

from nats_taskflow.bus.nats.server import EmbeddedServer, quote
from tests.e2e.stage import Agent, Ended, Sent, Stage
from tests.ports import kept_port

TEMPLATES = Path(__file__).parents[2] / "deploy" / "nats"
INBOXES = {"worker": "_INBOX_worker", "provisioner": "_INBOX_provisioner"}
_PLACEHOLDER = re.compile(r"REPLACE_WITH_THE_PUBLIC_NKEY_OF_([a-z]+)")
_REFUSED = re.compile(r'permissions violation for \w+ to "(.+?)"', re.IGNORECASE)
_ENDS_WITHIN = 20.0


class Key(msgspec.Struct, frozen=True):
    """One nkey of a user: the half the server knows, and a file with the other."""

    public: str
    seed: Path


def new_key(folder: Path, name: str) -> Key:
    """Make an nkey as `deploy/nats/README.md` does, and keep its seed in a private file."""
    seed = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)
    path = folder / f"{name}.nk"
    path.touch(mode=0o600)
    path.write_bytes(seed)
    return Key(nkeys.from_seed(bytearray(seed)).public_key.decode(), path)


def filled(folder: Path, keys: Mapping[str, Key]) -> None:
    """Copy the templates into a folder, with every placeholder replaced."""
    for template in TEMPLATES.glob("*.conf"):
        text = template.read_text(encoding="utf-8")
        (folder / template.name).write_text(_PLACEHOLDER.sub(lambda found: keys[found[1]].public, text), encoding="utf-8")


def names() -> list[str]:
    """Tell everybody whose nkey the templates ask for."""
    return _PLACEHOLDER.findall((TEMPLATES / "nkeys.conf").read_text(encoding="utf-8"))


class Refused:
    """What the server has refused a connection so far, as it says it."""

    def __init__(self) -> None:
        self.said: list[str] = []

    async def take(self, error: Exception) -> None:
        """Note an error."""
        self.said.append(str(error))

    def taken(self) -> list[str]:
        """Return what was refused, and forget it."""
        said, self.said = self.said, []
        return [one for one in said if "permissions violation" in one.lower()]

    def subjects(self) -> set[str]:
        """Return the subjects that were refused, in small letters as nats-py has them, and forget them."""
        return {found[1].lower() for one in self.taken() if (found := _REFUSED.search(one))}


class Guarded(Stage):
    """The stage behind permissions. Nothing is running after construction; `async with` starts server, provisioner and worker."""

    def __init__(
        self, folder: Path, *, permissions: str = "permissions.conf", settings: Mapping[str, str] | None = None, jetstream: str = ""
    ) -> None:
        data = folder / "nats"
        data.mkdir(parents=True)
        self.keys = {name: new_key(folder, name) for name in names()}
        filled(data, self.keys)
        # In place of the one before it.
        block = f"jetstream {{ store_dir: {quote(data / 'jetstream')}, {jetstream} }}\n" if jetstream else ""
        server = EmbeddedServer(data, kept_port(), extra_config=f'{block}include "{permissions}"')
        listed = {"TASKFLOW_CONFIG": str(TEMPLATES / "worker.toml")}
        super().__init__(folder, settings={**self.credentials("worker"), **listed, **(settings or {})}, server=server)

    def credentials(self, name: str) -> dict[str, str]:
        """Return the settings with which a worker process logs in as somebody."""
        return {"TASKFLOW_NATS_NKEY": str(self.keys[name].seed), "TASKFLOW_NATS_INBOX_PREFIX": inbox_of(name)}

    async def start(self, **changes: str) -> dict[str, Any]:
        """Have everything provisioned, once, then start the worker."""
        if self._runs == 0:
            done = await self.provision()
            assert done.code == 0, done.stderr
        return await super().start(**changes)

    async def provision(self, name: str = "provisioner") -> Ended:
        """Run `taskflow provision` to its end."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "nats_taskflow", "provision"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self.environment(**self.credentials(name)),
            cwd=self.folder,
        )
        _, told = await asyncio.wait_for(process.communicate(), _ENDS_WITHIN)
        assert process.returncode is not None
        return Ended(process.returncode, told.decode(), 0.0)

    async def connect(self, name: str, *, refused: Refused | None = None, **options: Any) -> Client:
        """Connect as somebody, with the inbox that is theirs."""
        settings = {"nkeys_seed": str(self.keys[name].seed), "inbox_prefix": inbox_of(name), "reconnect_time_wait": 0.05, **options}
        client = await nats.connect(self.server.url, max_reconnect_attempts=-1, error_cb=(refused or Refused()).take, **settings)
        self._clients.append(client)
        return client

    async def agent(self, name: str = "kate", **options: Any) -> Agent:
        """Connect as an agent."""
        return Agent(name, await self.connect(name, **options))

    async def stream(self, name: str, agent: Agent, *, after: int = 0) -> list[Sent]:
        """Read a stream message by message: the operator, whom `agent` has to be, may not make consumers."""
        state = (await agent.js.stream_info(name)).state
        found = []
        for seq in range(max(state.first_seq, after + 1), state.last_seq + 1) if state.messages else ():
            kept = await agent.js.get_msg(name, seq)
            found.append(Sent(seq, kept.subject or "", dict(kept.headers or {}), kept.data or b""))
        return found

    async def make_reader(self) -> None:
        """Make the consumer of the role `reader`, as the README has the provisioner do."""
        provisioner = (await self.connect("provisioner")).jetstream()
        await provisioner.add_consumer("TASKFLOW_EVT", ConsumerConfig(name="reader", durable_name="reader", ack_policy=AckPolicy.EXPLICIT))

    async def make_loop(self) -> None:
        """Make the consumer of the role `loop`, as the README has the provisioner do."""
        provisioner = (await self.connect("provisioner")).jetstream()
        config = ConsumerConfig(
            name="triage",
            durable_name="triage",
            ack_policy=AckPolicy.EXPLICIT,
            filter_subject="taskflow.evt.kate.*.*",
            max_deliver=-1,
        )
        await provisioner.add_consumer("TASKFLOW_EVT", config)


def inbox_of(name: str) -> str:
    """Return the inbox prefix of somebody."""
    return INBOXES.get(name, f"_INBOX.{name}")


async def flushed(client: Client) -> None:
    """Return once the server has read everything written, and we what it said to that."""
    await client.flush()
    await client.flush()  # nats-py's first PING overtakes its own buffer
