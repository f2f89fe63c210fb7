"""Say which streams and consumers a worker needs at the broker, and which replies it takes, by its settings (CONTRACT 1, 5)."""

from __future__ import annotations

from functools import partial

from nats_taskflow.bus.port import ConsumerSpec, StreamSpec
from nats_taskflow.config import Config
from nats_taskflow.errors import ConfigError
from nats_taskflow.wire import limits
from nats_taskflow.wire.replies import ReplyBindings
from nats_taskflow.wire.subjects import DEAD_LETTERS, EVENTS, INBOUND, Subjects

_SHARE, _SMALL_SHARE = 1 / 4, 1 / 32
"""What of the broker's storage a stream gets where the settings do not say: near half of it is left to others."""
_AROUND = 64 * 1024
"""The most that headers may add to a body."""


def topology(config: Config, subjects: Subjects, bindings: ReplyBindings) -> tuple[tuple[StreamSpec, ...], tuple[ConsumerSpec, ...]]:
    """Say which streams and consumers the worker needs (CONTRACT 1)."""
    its = config.stream
    kept = partial(StreamSpec, inbound=False, max_age=its.event_max_age.seconds, replicas=its.replicas)
    inbound = StreamSpec(
        name=INBOUND,
        subjects=subjects.inbound(bindings.topics()),
        inbound=True,
        max_age=its.max_age.seconds,
        max_bytes=its.max_bytes or -1,
        share=_SHARE,
        max_msg_size=limits.MAX_BYTES + _AROUND,
        replicas=its.replicas,
    )
    events, letters = subjects.events(), subjects.dead_letters()
    streams = (
        inbound,
        kept(name=EVENTS, subjects=events, max_bytes=its.event_max_bytes or -1, share=_SHARE),
        kept(name=DEAD_LETTERS, subjects=letters, max_bytes=its.dead_letter_max_bytes or -1, share=_SMALL_SHARE),
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
