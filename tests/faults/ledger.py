"""The client's own record of what it did and what it was told: the judge of what was lost."""

from __future__ import annotations

from collections import defaultdict

import msgspec


class Operation(msgspec.Struct):
    """One message of a client. `tries` without `acknowledged`: in doubt. Times are seconds of the monotonic clock.

    `counts`: whether the broker's acknowledgement promises an effect of its own (a repeat of another operation's id promises none).
    """

    id: str
    flow_id: str
    verb: str
    counts: bool = True
    tries: int = 0
    failed_tries: int = 0
    invoked: float = 0.0
    acknowledged: float | None = None
    revision: int | None = None

    @property
    def in_doubt(self) -> bool:
        """Whether it was sent, and nobody said that it arrived."""
        return self.tries > 0 and self.acknowledged is None


class Ledger:
    """All operations of a run, by id and by flow."""

    def __init__(self) -> None:
        self.operations: dict[str, Operation] = {}
        self.of_flow: dict[str, list[Operation]] = defaultdict(list)

    def open(self, operation_id: str, flow_id: str, verb: str, *, counts: bool = True) -> Operation:
        """Note that an operation is about to be sent. An id stands for one operation: raises `ValueError` where it is used again."""
        if operation_id in self.operations:
            raise ValueError(f"operation {operation_id} exists")
        operation = Operation(id=operation_id, flow_id=flow_id, verb=verb, counts=counts)
        self.operations[operation_id] = operation
        self.of_flow[flow_id].append(operation)
        return operation

    @property
    def acknowledged(self) -> list[Operation]:
        """The operations that the broker, or the worker, said it has."""
        return [operation for operation in self.operations.values() if operation.acknowledged is not None]

    @property
    def doubted(self) -> list[Operation]:
        """The operations of which at least one attempt was left unanswered, whatever came of them later."""
        return [operation for operation in self.operations.values() if operation.failed_tries]
