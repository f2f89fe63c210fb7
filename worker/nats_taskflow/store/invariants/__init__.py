"""What always holds, as functions that return what does not: RELIABILITY 2, run by tests, by every fault run and by `taskflow db check`.

`table` lists every invariant with its functions; `checking.violations` runs them all over the `evidence`: a snapshot of the database
(`snapshot` opens one, read-only), and, where there are any, what was published (`ledger`) and what clients were told (`record`).
The other modules are the functions: `journal`, `waits`, `timers`, `inbox`, `outbox`, `usage`, `file`, `damage` and `tenancy` look at the
database, `published` at the streams beside it, `client` at the clients' record.
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
