"""Say what a consumer's settings must be, and what is wrong with present ones.

Pure: JSON in, sentences out.
"""

from __future__ import annotations

from collections.abc import Iterable

from nats_taskflow.bus.filters import filters_in
from nats_taskflow.bus.port import ConsumerSpec
from nats_taskflow.bus.setting_rules import NS_PER_S, Json, Rule, broken_rules
from nats_taskflow.bus.stream_rules import source_transforms

_CONSUMER = (
    Rule("deliver_subject", must_be=None, absent=None, repair="it must be a pull consumer"),
    Rule("ack_policy", must_be="explicit", absent="none"),
    Rule("deliver_policy", must_be="all", absent="all"),
    Rule("replay_policy", must_be="instant", absent="instant"),
    Rule("max_deliver", must_be=-1, absent=-1),  # after max_deliver the server skips the message in silence
    Rule("backoff", must_be=None, absent=None),  # it overrides ack_wait
    Rule("headers_only", must_be=False, absent=False),
    Rule("inactive_threshold", must_be=0, absent=0),  # the server would remove the consumer during a long stop
    Rule("mem_storage", must_be=False, absent=False),
    Rule("priority_groups", must_be=None, absent=None),
)


def consumer_config(source: ConsumerSpec, filters: tuple[str, ...] = ()) -> Json:
    """Return the configuration for `CONSUMER.CREATE`.

    Without `filters` the consumer takes its whole stream.
    """
    config: Json = {
        "name": source.consumer,
        "durable_name": source.consumer,
        "ack_policy": "explicit",
        "ack_wait": int(source.ack_wait * NS_PER_S),
        "max_ack_pending": source.max_ack_pending,
        "max_deliver": -1,
        "deliver_policy": "all",
        "replay_policy": "instant",
    }
    if filters:
        config["filter_subjects"] = list(filters)
    return config


def consumer_objections(source: ConsumerSpec, config: Json) -> list[str]:
    """List the settings of an existing consumer that would break a promise.

    Each is a sentence.
    """
    flaws = [_objection(source, str(broken), broken.rule.repair) for broken in broken_rules(_CONSUMER, config)]
    wait = config.get("ack_wait") or 0
    if wait < NS_PER_S:
        flaws.append(_objection(source, f"ack_wait is {wait / NS_PER_S:g} s, it must be at least 1 s"))
    return flaws


def filter_objections(source: ConsumerSpec, config: Json, must_take: Iterable[str]) -> list[str]:
    """Return an objection if a consumer does not take the subjects that it should."""
    rule = Rule("filter_subjects", must_be=sorted(must_take), absent=None)
    return [_objection(source, str(broken)) for broken in broken_rules([rule], {"filter_subjects": sorted(filters_in(config))})]


def _objection(source: ConsumerSpec, flaw: str, advice: str = "") -> str:
    removal = f"remove it with `nats consumer rm {source.stream} {source.consumer}` while the worker is stopped; it is created again"
    return f"{source.label}: {flaw}; {f'{advice}; ' if advice else ''}{removal}"


def reasons_to_distrust(source: ConsumerSpec, stream: Json, consumer: Json) -> list[str]:
    """List why a consumer's messages may be forged, or come without their bodies.

    `stream` is the configuration of one of the worker's own streams, and empty for any other.
    """
    can_forge = stream.get("subject_transform") or stream.get("allow_msg_schedules") or source_transforms(stream)
    if not can_forge and not consumer.get("headers_only"):
        return []
    what = "messages may be from somebody else than their subject says" if can_forge else "messages come without their bodies"
    return [f"nothing is taken from {source.label} until this is changed back: {what}"]


def pause_warnings(source: ConsumerSpec, info: Json) -> list[str]:
    """Return a warning if a consumer is paused.

    The broker delivers nothing then, and reports nothing either.
    """
    if not info.get("paused"):
        return []
    until = info["config"].get("pause_until", "?")
    resume = f"nats consumer resume {source.stream} {source.consumer}"
    return [f"{source.label} is paused until {until}: nothing is delivered meanwhile; resume it with `{resume}`"]
