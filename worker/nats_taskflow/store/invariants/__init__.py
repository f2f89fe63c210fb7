"""What always holds, as functions that yield what does not.

Tests, fault runs and `taskflow db check` run them (RELIABILITY 2). `table` lists every invariant with its checks. `checking.violations`
runs them over the `evidence`: a snapshot of the database and, where there is one, a `ledger` of what was published; `findings` sums up the
result. The other modules are the checks: `published` compares the streams, all others look at the database. They read the SQLite adapter's
tables by its own `rows`, so the room lies above the adapter, and only the command line and the test kit import it. Begin with `table`.
"""

from __future__ import annotations

from nats_taskflow.store.invariants.checking import Violation, looked_at, violations
from nats_taskflow.store.invariants.evidence import Evidence, InboundProgress
from nats_taskflow.store.invariants.ledger import Ledger, LedgerMessage
from nats_taskflow.store.invariants.table import INVARIANTS, Invariant

__all__ = [
    "INVARIANTS",
    "Evidence",
    "InboundProgress",
    "Invariant",
    "Ledger",
    "LedgerMessage",
    "Violation",
    "looked_at",
    "violations",
]
