"""Limit the rate of an agent's commands, and of their bytes.

A command over the quota is refused before it costs anything. For each agent and kind one number is kept: when all its commands so far would
be through at the granted rate. It may lie `BURST` ahead of now (a leaky bucket).
"""

from __future__ import annotations

from nats_taskflow.errors import QuotaExceeded
from nats_taskflow.units import SECOND, Micros

BURST: Micros = 10 * SECOND
"""An agent may send at once what it is granted in this time; more it cannot save up."""
_MOST_AGENTS = 10_000


class CommandQuota:
    """Meters the commands of one door. Rates are per agent and second; None: no limit."""

    def __init__(self, *, commands: int | None = None, size: int | None = None) -> None:
        self._rates = {kind: rate for kind, rate in (("commands", commands), ("bytes", size)) if rate is not None}
        self._through: dict[str, tuple[Micros, dict[str, Micros]]] = {}

    def refusal(self, agent: str, size: int, at: Micros) -> QuotaExceeded | None:
        """Return the refusal of a command over the agent's quota, or count the command.

        It came at `at`. A command that came before others that were metered is a redelivery, or was put off: it passes.
        """
        if not self._rates:
            return None
        latest, before = self._through.get(agent, (at, {}))
        if at < latest:
            return None
        costs = {"commands": 1, "bytes": size}
        through = {kind: max(before.get(kind, at), at) + costs[kind] * SECOND // rate for kind, rate in self._rates.items()}
        for kind, until in through.items():
            if until > at + BURST:
                return _exceeded(kind, self._rates[kind], until - at - BURST)
        if agent not in self._through and len(self._through) >= _MOST_AGENTS:
            self._forget(at)
        self._through[agent] = at, through
        return None

    def _forget(self, at: Micros) -> None:
        self._through = {agent: through for agent, through in self._through.items() if max(through[1].values()) > at}


def _exceeded(kind: str, rate: int, early: Micros) -> QuotaExceeded:
    retry_after = max(-(-early // SECOND), 1)
    message = f"this agent may send {rate:,} {kind} a second: ask again in {retry_after} s; the operator can raise the quota"
    return QuotaExceeded(message, quota=kind, limit=rate, retry_after=retry_after)


UNMETERED = CommandQuota()
