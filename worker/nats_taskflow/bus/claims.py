"""Write into a consumer's metadata which database it serves, and refuse one that serves another (SEMANTICS O9). Pure.

The lock of a database says nothing of a worker on another one, or on a copy: both would pull from one consumer, and each would decide half
of every flow's messages.
"""

from __future__ import annotations

from nats_taskflow.bus.port import ClaimHolder, ConsumerSpec
from nats_taskflow.bus.setting_rules import Json

_PREFIX = "taskflow-"
_UNKNOWN = "?"
MEMORY = ":memory:"
"""Where a database lies that is gone with its worker: it must not take a consumer over from one that stays, nor leave its name there."""


def holder_in(config: Json) -> ClaimHolder | None:
    """Return whose the consumer is, as far as its configuration says."""
    metadata = config.get("metadata") or {}
    fields = {name: str(metadata.get(_PREFIX + name, _UNKNOWN)) for name in ClaimHolder.__struct_fields__}
    return ClaimHolder(**fields) if metadata.get(_PREFIX + "database") else None


def with_claim(config: Json, holder: ClaimHolder | None) -> Json:
    """Return the configuration with the holder's name in it; unchanged where there is nobody to name, or no more to say than is there.

    Where it is not known where the database lies, somebody else has written the claim, because the worker may not.
    """
    if holder is None or holder.store == MEMORY:
        return config
    known = holder_in(config)
    if known is not None and (known == holder or (known.database == holder.database and _UNKNOWN in (known.store, holder.store))):
        return config
    ours = {_PREFIX + name: getattr(holder, name) for name in ClaimHolder.__struct_fields__}
    return {**config, "metadata": {**(config.get("metadata") or {}), **ours}}


def refusal(source: ConsumerSpec, holder: ClaimHolder | None, info: Json) -> str | None:
    """Say why a worker on this database may not pull from the consumer, or None: it is nobody's yet, or its own.

    A copy has the same id. So has a database that was moved, and nobody pulls for that any more.
    """
    other = holder_in(info["config"])
    if holder is None or other is None:
        return None
    where = f"{other.store} on {other.host}, pid {other.pid}"
    consumer = f"consumer {source.consumer} of stream {source.stream}"
    if other.database != holder.database:
        return (
            f"{consumer} belongs to the database {other.database} ({where}), not to {holder.database} ({holder.store}): workers on two "
            "databases would each take a part of every flow's messages. Start it on that database, give it a NATS account of its own, or "
            "stop the other worker and take the consumer over for good with --adopt"
        )
    places = (holder.host, holder.store), (other.host, other.store)
    if places[0] == places[1] or _UNKNOWN in places[0] + places[1] or not info["num_waiting"]:
        return None
    return (
        f"{consumer} belongs to the database {other.database} ({where}), and a worker pulls from it; {holder.store} has the same id, so "
        "one of the two is a copy, and each would take a part of every flow's messages. Stop that worker first, or, if this is to be the "
        "database from now on, take the consumer over for good with --adopt"
    )


def rival_warnings(source: ConsumerSpec, holder: ClaimHolder | None, info: Json) -> list[str]:
    """Warn where somebody pulls before this worker does, and nobody has written down for which database."""
    if holder is None or holder.store == _UNKNOWN or not info["num_waiting"] or holder_in(info["config"]) is not None:
        return []
    remark = (
        f"consumer {source.consumer} of stream {source.stream}: somebody else pulls from it. A second worker on a database of its own "
        "takes part of every flow's messages: stop one of them, or give each a NATS account of its own"
    )
    return [remark]
