"""Say which streams and consumers a worker needs at the broker, and which replies it takes, by its settings (CONTRACT 1, 5)."""

from __future__ import annotations

from worker.bus.base import Source, Stream
from worker.config import Config
from worker.errors import ConfigError
from worker.wire.replies import Bindings
from worker.wire.subjects import DEAD_LETTERS, EVENTS, INBOUND, Subjects


def topology(config: Config, subjects: Subjects, bindings: Bindings) -> tuple[tuple[Stream, ...], tuple[Source, ...]]:
    """Say which streams and consumers the worker needs (CONTRACT 1)."""
    age, kept = config.stream.max_age.seconds, config.stream.event_max_age.seconds
    copies = config.stream.replicas
    inbound = subjects.inbound(bindings.topics())
    streams = (
        Stream(name=INBOUND, subjects=inbound, inbound=True, max_age=age, replicas=copies),
        Stream(name=EVENTS, subjects=subjects.events(), inbound=False, max_age=kept, replicas=copies),
        Stream(name=DEAD_LETTERS, subjects=subjects.dead_letters(), inbound=False, max_age=kept, replicas=copies),
    )
    elsewhere = tuple(
        Source(stream=name, consumer="taskflow", filters=bindings.topics(name), ends_waits=True) for name in bindings.streams()
    )
    commands, replies = subjects.commands(), subjects.replies(bindings.topics())
    own = (
        Source(stream=INBOUND, consumer="worker", filters=commands),
        Source(stream=INBOUND, consumer="replies", filters=replies, all_but=commands, ends_waits=True),
    )
    return streams, (*own, *elsewhere)


def reply_bindings(config: Config, subjects: Subjects) -> Bindings:
    """Build the reply bindings. Raises `ConfigError` naming the one that cannot work."""
    try:
        return Bindings(config.bindings(), subjects)
    except ValueError as bad:
        raise ConfigError(str(bad)) from bad
