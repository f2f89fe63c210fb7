"""Ask as an agent, with its own key and about its own flows: what operators ask on `admin`, spelled as an agent asks it on `api`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from nats_taskflow.cli.session import Json, Online

if TYPE_CHECKING:
    from nats_taskflow.bus.nats.inspect import InspectClient
    from nats_taskflow.config import Config

_VERBS = {"list": "list_mine", "show": "status"} | {verb: verb for verb in ("history", "steps", "waits", "why", "resume", "cancel", "fail")}
_NAMES = {"older_than": "until"}
_LOOKED_AT = 10_000
"""Among how many of its flows, the newest, an agent finds one by a part of its id."""


class AgentSession(Online):
    """A worker over NATS, asked by one agent in one session."""

    def __init__(self, config: Config, client: InspectClient, patience: float, agent: str, session: str) -> None:
        super().__init__(config, client, patience)
        self.agent = agent
        self._session = session

    async def ask(self, verb: str, **fields: Any) -> Json:
        """Ask on `api`."""
        if verb == "find":
            return {"ids": await self._ids_like(fields["part"].lower())}
        if verb not in _VERBS:
            raise click.UsageError(f"{verb} is for operators: leave --agent out, and use their credentials")
        own = {_NAMES.get(name, name): value for name, value in fields.items() if name != "operator"}
        return await self.as_agent(self.agent, _VERBS[verb], session_id=self._session, **own)

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
