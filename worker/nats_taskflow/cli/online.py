"""Ask a worker over NATS: as an operator on `admin`, or as an agent on `api`, with its own key and about its own flows."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import click

from nats_taskflow.cli.protocol import Json, RequestRefused

if TYPE_CHECKING:
    from nats_taskflow.bus.nats.inspect import InspectClient
    from nats_taskflow.config import Config

_VERBS = {"list": "list_mine", "show": "status"} | {verb: verb for verb in ("history", "steps", "waits", "why", "resume", "cancel", "fail")}
_NAMES = {"older_than": "until"}
_LOOKED_AT = 10_000
"""Among how many of its flows, the newest, an agent finds one by a part of its id."""


@asynccontextmanager
async def connect(config: Config) -> AsyncIterator[InspectClient]:
    """Connect to NATS. Raises `BusLost` soon."""
    from nats_taskflow.bus.nats.inspect import InspectClient
    from nats_taskflow.bus.nats.options import nats_options

    async with InspectClient(nats_options(config.nats)) as client:
        yield client


class OnlineSession:
    """A worker over NATS. `agent`: whose flows are asked about; any agent's by default."""

    agent = "*"

    def __init__(self, config: Config, client: InspectClient, patience: float) -> None:
        from nats_taskflow.wire.subjects import Subjects

        self.config = config
        self.client = client
        self.subjects = Subjects(config.subjects.prefix)
        self._patience = patience

    async def ask(self, verb: str, **fields: Any) -> Json:
        """Ask on `admin`."""
        return await self._asked(self.subjects.admin(verb), fields)

    async def as_agent(self, agent: str, verb: str, **fields: Any) -> Json:
        """Ask on `api`."""
        from nats_taskflow.wire.subjects import is_token

        if not is_token(agent):
            raise click.UsageError(f"--agent takes 1 to 63 characters A-Z a-z 0-9 _ -, not {agent!r}")
        return await self._asked(self.subjects.api(agent, verb), fields)

    async def _asked(self, subject: str, fields: Json) -> Json:
        """Ask, and tell an answer from a refusal."""
        import msgspec

        from nats_taskflow.bus.nats.inspect import NoWorkerAnswer

        body = msgspec.json.encode({name: value for name, value in fields.items() if value is not None})
        try:
            answer: Json = msgspec.json.decode(await self.client.ask(subject, body, within=self._patience))
        except NoWorkerAnswer as silent:
            if silent.late:
                raise
            raise NoWorkerAnswer(f"no worker answers on {subject} ({self.client.address}); start one") from silent
        if not answer["ok"]:
            raise RequestRefused(answer["error"])
        return answer


class AgentSession(OnlineSession):
    """A worker over NATS, asked by one agent in one session."""

    def __init__(self, config: Config, client: InspectClient, patience: float, agent: str, session_id: str) -> None:
        super().__init__(config, client, patience)
        self.agent = agent
        self._session_id = session_id

    async def ask(self, verb: str, **fields: Any) -> Json:
        """Ask on `api`."""
        if verb == "find":
            return {"ids": await self._ids_like(fields["part"].lower())}
        if verb not in _VERBS:
            raise click.UsageError(f"{verb} is for operators: leave --agent out, and use their credentials")
        own = {_NAMES.get(name, name): value for name, value in fields.items() if name != "operator"}
        return await self.as_agent(self.agent, _VERBS[verb], session_id=self._session_id, **own)

    async def _ids_like(self, part: str) -> list[str]:
        """Return the ids of the agent's flows that begin or end like this."""
        found: list[str] = []
        cursor: str | None = None
        for _ in range(_LOOKED_AT // 1000):
            page = await self.ask("list", limit=1000, cursor=cursor)
            found += [flow["id"] for flow in page["flows"] if flow["id"].startswith(part) or flow["id"].endswith(part)]
            cursor = page["next_cursor"]
            if cursor is None:
                break
        return found
