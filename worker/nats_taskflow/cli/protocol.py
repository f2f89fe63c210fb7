"""The port of commands: what answers their questions.

That is a worker over NATS, asked by an operator or an agent, or a database file.
"""

from __future__ import annotations

from typing import Any, Protocol

Json = dict[str, Any]


class WorkerRefusal(Exception):
    """The worker refused; `error` is what it answered."""

    def __init__(self, error: Json) -> None:
        super().__init__(error["message"])
        self.error = error


class OperatorSession(Protocol):
    """Whoever answers operators' requests. Fields that are None are left out."""

    async def ask(self, verb: str, **fields: Any) -> Json:
        """Return the answer to an operator's request. Raises `WorkerRefusal`."""
        ...

    async def ask_as_agent(self, agent: str, verb: str, **fields: Any) -> Json:
        """Return the answer to an agent's request. Raises `WorkerRefusal`."""
        ...
