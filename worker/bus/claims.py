"""Write into a consumer's metadata which database it serves, and refuse one that serves another (SEMANTICS O9). Pure.

The lock of a database says nothing of a worker on another one: both would pull from one consumer, and each would decide half of every
flow's messages.
"""

from __future__ import annotations

from worker.bus.base import Holder, Source
from worker.bus.settings import Json

_PREFIX = "taskflow-"
MEMORY = ":memory:"
"""Where a database lies that is gone with its worker: it must not take a consumer over from one that stays, nor leave its name there."""


def holder_in(config: Json) -> Holder | None:
    """Return whose the consumer is, as far as its configuration says."""
    metadata = config.get("metadata") or {}
    fields = {name: str(metadata.get(_PREFIX + name, "?")) for name in Holder.__struct_fields__}
    return Holder(**fields) if metadata.get(_PREFIX + "database") else None


def claimed(config: Json, holder: Holder | None) -> Json:
    """Return the configuration with the holder's name in it; unchanged where there is nobody to name, or it is there already."""
    known = holder_in(config)
    if holder is None or holder.store == MEMORY or (known is not None and known.database == holder.database):
        return config
    ours = {_PREFIX + name: getattr(holder, name) for name in Holder.__struct_fields__}
    return {**config, "metadata": {**(config.get("metadata") or {}), **ours}}


def refusal(source: Source, holder: Holder | None, config: Json) -> str | None:
    """Say why a worker on this database may not pull from the consumer, or None: it is nobody's yet, or its own."""
    other = holder_in(config)
    if holder is None or other is None or other.database == holder.database:
        return None
    return (
        f"consumer {source.consumer} of stream {source.stream} belongs to the database {other.database} ({other.store} on {other.host}), "
        f"not to {holder.database} ({holder.store}): workers on two databases would each take a part of every flow's messages. Start it on "
        "that database, give it a NATS account of its own, or stop the other worker and take the consumer over for good with --adopt"
    )
