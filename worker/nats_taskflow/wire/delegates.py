"""Check which agents' flows may ask a delegate (SEMANTICS 5).

Without any entry in the settings, all may ask everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from nats_taskflow.errors import Forbidden
from nats_taskflow.wire.reply_bindings import check_owners
from nats_taskflow.wire.subjects import covers, is_pattern


class DelegateOwners(msgspec.Struct, frozen=True):
    """A subject, or a pattern of subjects, on which delegates are asked.

    `owners`: the agents whose flows may ask there, or `*`.
    """

    subject: str
    owners: tuple[str, ...] = ("*",)


def check_delegate(delegate: DelegateOwners) -> None:
    """Raise `ValueError` with a sentence that begins with the wrong key."""
    if not is_pattern(delegate.subject):
        raise ValueError(f"subject: {delegate.subject!r} is no NATS subject; write one like agent.billing.>")
    check_owners(delegate.owners)


class Delegates:
    """The owners of all delegates.

    Where several entries cover a subject, the owners of each may ask there.
    """

    def __init__(self, entries: Sequence[DelegateOwners]) -> None:
        self._entries = tuple(entries)

    def refusal(self, subject: str, agent: str | None) -> Forbidden | None:
        """Return the refusal where the agent's flows may not ask on the subject.

        Otherwise None. An `agent` of None is in-process, and trusted with any subject.
        """
        if not self._entries or agent is None:
            return None
        if any(covers(entry.subject, subject) and ("*" in entry.owners or agent in entry.owners) for entry in self._entries):
            return None
        return Forbidden(f"agent {agent} may not ask {subject}: no [[delegates]] entry of the worker's settings lists it for this agent")
