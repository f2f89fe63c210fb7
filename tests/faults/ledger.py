"""The client's own record of what it did and what it was told: the judge of what was lost."""

from __future__ import annotations

from collections import defaultdict

import msgspec

from tests.faults.client_record import Answer
from tests.faults.client_record import Operation as Told


class Operation(msgspec.Struct):
    """One message of a client; `scope` and `key` name it in the inbox. `tries` without `acknowledged`: in doubt.

    Times are seconds of the monotonic clock.

    `counts`: whether the broker's acknowledgement promises an effect of its own (a repeat of another operation's id promises none).
    """

    id: str
    scope: str
    key: str
    flow_id: str
    verb: str
    counts: bool = True
    refused: bool = False
    tries: int = 0
    failed_tries: int = 0
    invoked: float = 0.0
    acknowledged: float | None = None
    revision: int | None = None

    def told(self) -> Told:
        """Return it as the invariants take it."""
        known: Answer = "refused" if self.refused else "accepted" if self.revision is None else "applied"
        return Told(
            scope=self.scope,
            key=self.key,
            verb="" if self.scope == "reply" else self.verb,
            answer="in_doubt" if self.in_doubt else known,
            flow_id=self.flow_id,
            revision=self.revision,
            invoked_us=int(self.invoked * 1_000_000),
            completed_us=None if self.acknowledged is None else int(self.acknowledged * 1_000_000),
        )

    @property
    def in_doubt(self) -> bool:
        """Whether it was sent, and nobody said that it arrived."""
        return self.tries > 0 and self.acknowledged is None


class Ledger:
    """All operations of a run, by id and by flow."""

    def __init__(self) -> None:
        self.operations: dict[str, Operation] = {}
        self.of_flow: dict[str, list[Operation]] = defaultdict(list)

    def command(self, agent: str, command_id: str, flow_id: str, verb: str) -> Operation:
        """Note that a command is about to be sent. An id stands for one operation: raises `ValueError` where it is used again."""
        return self._open(Operation(id=command_id, scope=f"cmd:{agent}", key=command_id, flow_id=flow_id, verb=verb))

    def reply(self, pair: tuple[str, str], event_id: str, flow_id: str, *, turn: int = 0, counts: bool = True) -> Operation:
        """Note that a reply is about to be sent; `turn` tells one of several under the same event id."""
        key = f"{pair[0]}\n{pair[1]}\n{event_id}"
        return self._open(
            Operation(id=f"{event_id}#{turn}" if turn else event_id, scope="reply", key=key, flow_id=flow_id, verb="reply", counts=counts)
        )

    def _open(self, operation: Operation) -> Operation:
        """Add an operation."""
        if operation.id in self.operations:
            raise ValueError(f"operation {operation.id} exists")
        self.operations[operation.id] = operation
        self.of_flow[operation.flow_id].append(operation)
        return operation

    @property
    def acknowledged(self) -> list[Operation]:
        """The operations that the broker, or the worker, said it has."""
        return [operation for operation in self.operations.values() if operation.acknowledged is not None]

    @property
    def doubted(self) -> list[Operation]:
        """The operations of which at least one attempt was left unanswered, whatever came of them later."""
        return [operation for operation in self.operations.values() if operation.failed_tries]
