"""Say whose delegates are (SEMANTICS 5): which agents' flows may ask on a subject. Where nobody says anything, all may ask everywhere."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from nats_taskflow.errors import Forbidden
from nats_taskflow.wire.reply_bindings import check_owners
from nats_taskflow.wire.subjects import covers, is_pattern


class DelegateOwners(msgspec.Struct, frozen=True):
    """A subject, or a pattern of subjects, on which delegates are asked, and the `owners` whose flows may ask there: agents, or `*`."""

    subject: str
    owners: tuple[str, ...] = ("*",)


def check_delegate(delegate: DelegateOwners) -> None:
    """Raise `ValueError` with a sentence that begins with the key that is wrong."""
    if not is_pattern(delegate.subject):
        raise ValueError(f"subject: {delegate.subject!r} is no NATS subject; write one like agent.billing.>")
    check_owners(delegate.owners)


class Delegates:
    """All that is said of delegates. What several entries say of a subject adds up."""

    def __init__(self, listed: Sequence[DelegateOwners]) -> None:
        self._listed = tuple(listed)

    def refusal(self, subject: str, agent: str | None) -> Forbidden | None:
        """Say why `agent`'s flows may not ask on `subject`, or None. `agent` None: in-process, trusted with any."""
        if not self._listed or agent is None:
            return None
        if any(covers(entry.subject, subject) and ("*" in entry.owners or agent in entry.owners) for entry in self._listed):
            return None
        return Forbidden(f"agent {agent} may not ask {subject}: no [[delegates]] entry of the worker's settings lists it for this agent")
