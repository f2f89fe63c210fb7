"""Bound what an agent may have done in a time: commands, and their bytes. What is beyond is refused at the price of a look.

For each agent and kind one number is kept: when what it has asked for would be through at the rate that is granted. As far as that may lie
ahead of now, it may ask for more at once.
"""

from __future__ import annotations

from nats_taskflow.errors import QuotaExceeded
from nats_taskflow.units import SECOND, Micros

BURST: Micros = 10 * SECOND
"""What an agent may ask for at once, or saves up while it asks for nothing: as much as it is granted in this time."""
_MOST_AGENTS = 10_000


class CommandQuota:
    """Meters the commands of one door. Rates are for each agent and second; None: as much as it likes."""

    def __init__(self, *, commands: int | None = None, size: int | None = None) -> None:
        self._rates = {kind: rate for kind, rate in (("commands", commands), ("bytes", size)) if rate is not None}
        self._through: dict[str, tuple[Micros, dict[str, Micros]]] = {}

    def refusal(self, agent: str, size: int, at: Micros) -> QuotaExceeded | None:
        """Say that a command that came at `at` is beyond the agent's quota; otherwise count it.

        One that came before others that were looked at is delivered once more, or was put off: it is let through.
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
        """Forget agents that have nothing on their account."""
        self._through = {agent: through for agent, through in self._through.items() if max(through[1].values()) > at}


def _exceeded(kind: str, rate: int, early: Micros) -> QuotaExceeded:
    """Say which quota is used up, and for how long."""
    retry_after = max(-(-early // SECOND), 1)
    message = f"this agent may send {rate:,} {kind} a second: ask again in {retry_after} s; the operator can raise the quota"
    return QuotaExceeded(message, quota=kind, limit=rate, retry_after=retry_after)


UNMETERED = CommandQuota()
