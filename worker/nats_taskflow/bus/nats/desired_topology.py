"""Derive the streams, consumers and reply bindings from the settings.

They are those of CONTRACT 1 and 5.
"""

from __future__ import annotations

from functools import partial

from nats_taskflow.bus.port import ConsumerSpec, StreamSpec
from nats_taskflow.config.settings import Config
from nats_taskflow.errors import ConfigError
from nats_taskflow.wire import limits
from nats_taskflow.wire.replies import ReplyBindings
from nats_taskflow.wire.subjects import DEAD_LETTERS, EVENTS, INBOUND, Subjects

_SHARE, _SMALL_SHARE = 1 / 4, 1 / 32
"""Parts of the broker's storage for a stream whose size is not set. Nearly half of the storage is left to others."""
_HEADERS_MAX = 64 * 1024
"""The most bytes that headers may add to a body."""


def topology(config: Config, subjects: Subjects, bindings: ReplyBindings) -> tuple[tuple[StreamSpec, ...], tuple[ConsumerSpec, ...]]:
    """Return the streams and consumers that the worker needs (CONTRACT 1)."""
    settings = config.stream
    outbound = partial(StreamSpec, inbound=False, max_age=settings.event_max_age.seconds, replicas=settings.replicas)
    inbound = StreamSpec(
        name=INBOUND,
        subjects=subjects.inbound(bindings.topics()),
        inbound=True,
        max_age=settings.max_age.seconds,
        max_bytes=settings.max_bytes or -1,
        share=_SHARE,
        max_msg_size=limits.MAX_BYTES + _HEADERS_MAX,
        replicas=settings.replicas,
    )
    events, dead_letters = subjects.events(), subjects.dead_letters()
    streams = (
        inbound,
        outbound(name=EVENTS, subjects=events, max_bytes=settings.event_max_bytes or -1, share=_SHARE),
        outbound(name=DEAD_LETTERS, subjects=dead_letters, max_bytes=settings.dead_letter_max_bytes or -1, share=_SMALL_SHARE),
    )
    commands, replies = subjects.commands(), subjects.replies(bindings.topics())
    elsewhere = tuple(
        ConsumerSpec(stream=name, consumer="taskflow", filters=bindings.topics(name), ends_waits=True) for name in bindings.streams()
    )
    own = (
        ConsumerSpec(stream=INBOUND, consumer="worker", filters=commands),
        ConsumerSpec(stream=INBOUND, consumer="replies", filters=replies, all_but=commands, ends_waits=True),
    )
    return streams, (*own, *elsewhere)


def reply_bindings(config: Config, subjects: Subjects) -> ReplyBindings:
    """Build the reply bindings. Raises `ConfigError` naming the one that cannot work."""
    try:
        return ReplyBindings(config.bindings(), subjects)
    except ValueError as bad:
        raise ConfigError(str(bad)) from bad
