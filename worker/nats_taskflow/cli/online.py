"""Ask a worker over NATS: as an operator or as an agent.

Operators ask on `admin`. An agent asks on `api`, with its own credentials and about its own flows.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import click

from nats_taskflow.cli.protocol import Json, WorkerRefusal

if TYPE_CHECKING:
    from nats_taskflow.bus.nats.inspect import InspectClient
    from nats_taskflow.config import Config

_AGENT_VERBS = {
    "list": "list_mine",
    "show": "status",
    **{verb: verb for verb in ("history", "steps", "waits", "why", "resume", "cancel", "fail")},
}
"""What an operator's verb is called on `api`; agents have none of the others."""
_AGENT_FIELDS = {"older_than": "until"}
"""What a field is called on `api`, where that is not the operators' name."""
_MAX_SEARCHED = 10_000
"""Among how many of its flows, the newest, an agent finds one by a part of its id."""
_PAGE = 1000


@asynccontextmanager
async def connect(config: Config) -> AsyncIterator[InspectClient]:
    """Connect to NATS. Raises `BusLost` within seconds."""
    from nats_taskflow.bus.nats.inspect import InspectClient
    from nats_taskflow.bus.nats.options import nats_options

    async with InspectClient(nats_options(config.nats)) as client:
        yield client


class OnlineSession:
    """A worker, asked by an operator.

    `agent`: whose flows are asked about; here, any agent's.
    """

    agent = "*"

    def __init__(self, config: Config, client: InspectClient, patience: float) -> None:
        from nats_taskflow.wire.subjects import Subjects

        self.config = config
        self.client = client
        self.subjects = Subjects(config.subjects.prefix)
        self._patience = patience

    async def ask(self, verb: str, **fields: Any) -> Json:
        """Ask on `admin`."""
        return await self._request(self.subjects.admin(verb), fields)

    async def ask_as_agent(self, agent: str, verb: str, **fields: Any) -> Json:
        """Ask on `api`."""
        from nats_taskflow.wire.subjects import is_token

        if not is_token(agent):
            raise click.UsageError(f"--agent takes 1 to 63 characters A-Z a-z 0-9 _ -, not {agent!r}")
        return await self._request(self.subjects.api(agent, verb), fields)

    async def _request(self, subject: str, fields: Json) -> Json:
        """Send a request and return its answer.

        Raises `WorkerRefusal`, and `NoWorkerAnswer` with what to do.
        """
        import msgspec

        from nats_taskflow.bus.nats.inspect import NoWorkerAnswer

        body = msgspec.json.encode({name: value for name, value in fields.items() if value is not None})
        try:
            answer: Json = msgspec.json.decode(await self.client.ask(subject, body, within=self._patience))
        except NoWorkerAnswer as silence:
            if silence.late:
                raise
            raise NoWorkerAnswer(f"no worker answers on {subject} ({self.client.address}); start one") from silence
        if not answer["ok"]:
            raise WorkerRefusal(answer["error"])
        return answer


class AgentSession(OnlineSession):
    """A worker, asked by one agent in one of its sessions.

    It asks on `api` what operators ask on `admin`.
    """

    def __init__(self, config: Config, client: InspectClient, patience: float, agent: str, session_id: str) -> None:
        super().__init__(config, client, patience)
        self.agent = agent
        self._session_id = session_id

    async def ask(self, verb: str, **fields: Any) -> Json:
        """Ask on `api`."""
        if verb == "find":
            return {"ids": await self._find_ids(fields["part"].lower())}
        if verb not in _AGENT_VERBS:
            raise click.UsageError(f"{verb} is for operators: leave --agent out, and use their credentials")
        own = {_AGENT_FIELDS.get(name, name): value for name, value in fields.items() if name != "operator"}
        return await self.ask_as_agent(self.agent, _AGENT_VERBS[verb], session_id=self._session_id, **own)

    async def _find_ids(self, part: str) -> list[str]:
        """Return the ids of the agent's flows that begin or end with `part`."""
        ids: list[str] = []
        cursor: str | None = None
        for _ in range(_MAX_SEARCHED // _PAGE):
            page = await self.ask("list", limit=_PAGE, cursor=cursor)
            ids += [flow["id"] for flow in page["flows"] if flow["id"].startswith(part) or flow["id"].endswith(part)]
            cursor = page["next_cursor"]
            if cursor is None:
                break
        return ids
