"""Claim consumers for one database, in their metadata (SEMANTICS O9).

Pure. A consumer that another database has claimed is refused. A database's lock does not keep out a worker on another database, or on a
copy. Both would pull from one consumer, and each would decide half of every flow's messages.
"""

from __future__ import annotations

from nats_taskflow.bus.port import ClaimHolder, ConsumerSpec
from nats_taskflow.bus.setting_rules import Json

_PREFIX = "taskflow-"
_UNKNOWN = "?"
MEMORY = ":memory:"
"""The path of a database that ends with its worker: it must not claim a consumer."""


def holder_in(config: Json) -> ClaimHolder | None:
    """Return who claims the consumer; None where nobody does."""
    metadata = config.get("metadata") or {}
    fields = {name: str(metadata.get(_PREFIX + name, _UNKNOWN)) for name in ClaimHolder.__struct_fields__}
    return ClaimHolder(**fields) if metadata.get(_PREFIX + "database") else None


def with_claim(config: Json, holder: ClaimHolder | None) -> Json:
    """Return the configuration with the holder's claim.

    It is the same object where nothing is to be added. A claim without a path was written by `taskflow provision` for a worker that may not
    write it itself.
    """
    if holder is None or holder.store == MEMORY:
        return config
    present = holder_in(config)
    if present is not None and (present == holder or (present.database == holder.database and _UNKNOWN in (present.store, holder.store))):
        return config
    ours = {_PREFIX + name: getattr(holder, name) for name in ClaimHolder.__struct_fields__}
    return {**config, "metadata": {**(config.get("metadata") or {}), **ours}}


def refusal(source: ConsumerSpec, holder: ClaimHolder | None, info: Json) -> str | None:
    """Return why a worker on this database may not pull from the consumer, or None.

    A copied database has the same id, and so has one that was moved. For the moved one nobody pulls any more.
    """
    other = holder_in(info["config"])
    if holder is None or other is None:
        return None
    where = f"{other.store} on {other.host}, pid {other.pid}"
    if other.database != holder.database:
        return (
            f"{source.label} belongs to the database {other.database} ({where}), not to {holder.database} ({holder.store}): workers on two "
            "databases would each take a part of every flow's messages. Start it on that database, give it a NATS account of its own, or "
            "stop the other worker and take the consumer over for good with --adopt"
        )
    places = (holder.host, holder.store), (other.host, other.store)
    if places[0] == places[1] or _UNKNOWN in places[0] + places[1] or not info["num_waiting"]:
        return None
    return (
        f"{source.label} belongs to the database {other.database} ({where}), and a worker pulls from it; {holder.store} has the same id, "
        "so one of the two is a copy, and each would take a part of every flow's messages. Stop that worker first, or, if this is to be "
        "the database from now on, take the consumer over for good with --adopt"
    )


def rival_warnings(source: ConsumerSpec, holder: ClaimHolder | None, info: Json) -> list[str]:
    """Warn that somebody already pulls from a consumer that no database has claimed."""
    if holder is None or holder.store == _UNKNOWN or not info["num_waiting"] or holder_in(info["config"]) is not None:
        return []
    warning = (
        f"{source.label}: somebody else pulls from it. A second worker on a database of its own "
        "takes part of every flow's messages: stop one of them, or give each a NATS account of its own"
    )
    return [warning]
