"""Tell what a stream's and a consumer's settings must be, and say what is wrong with existing ones. Pure: JSON in, sentences out."""

from __future__ import annotations

import re
from typing import Any

from nats_taskflow.bus.port import ConsumerSpec, StreamSpec
from nats_taskflow.wire.subjects import covers, overlap

_NS = 1_000_000_000
_NOT_EDITABLE = "it cannot be edited: move the messages to a new stream, or remove this one with `nats stream rm {name}`"
_OLDEST_SERVER = (2, 10, 23)
_BATCHING_SERVER = (2, 12, 0)
SIZES = ("max_bytes", "max_msg_size")
"""The limits of a stream that are given to one that has none."""
BATCHES = "allow_atomic"
"""The setting of a stream that takes atomic batches (ADR-50)."""

_MAPPING = re.compile(r"\{\{[^}]*\}\}|\$\d+")
"""A token of a transform's destination that is made from the subject: `{{wildcard(1)}}`, `$1`, `{{partition(8,2)}}`."""

Json = dict[str, Any]

# setting, what it must be, what the server means where it leaves the setting out, how to repair it
_EVERY_STREAM: tuple[tuple[str, Any, Any, str], ...] = (
    ("storage", "file", "file", _NOT_EDITABLE),
    ("retention", "limits", "limits", _NOT_EDITABLE),
    ("max_msgs_per_subject", -1, -1, "`nats stream edit {name} --max-msgs-per-subject=-1`"),  # drops events from the middle of a flow
    ("no_ack", False, False, "`nats stream edit {name} --ack`"),
    ("sealed", False, False, _NOT_EDITABLE),
    ("mirror", None, None, _NOT_EDITABLE),
    ("persist_mode", "default", "default", _NOT_EDITABLE),
    ("allow_msg_counter", False, False, _NOT_EDITABLE),
    # The subject says who a message is from, and whom an event is for.
    ("subject_transform", None, None, "take it out with `nats stream edit {name} --interactive`"),
)
# The server's PubAck goes, with the server's rights, wherever a publisher says: also to its own API, where older servers, and such with
# `strict: false`, take `{"stream": …, "seq": …}` for a request to purge, or to remove that message.
_GUARDS: tuple[tuple[str, Any, Any, str], ...] = (
    ("deny_delete", True, False, "`nats stream edit {name} --deny-delete`"),
    ("deny_purge", True, False, "`nats stream edit {name} --deny-purge`"),
)
# Agents publish here. Each of these lets a publisher, or a full stream, erase or forge what others were promised is stored.
_INBOUND_STREAM: tuple[tuple[str, Any, Any, str], ...] = (
    ("discard", "new", "old", "`nats stream edit {name} --discard new`"),
    *_GUARDS,
    ("allow_rollup_hdrs", False, False, "`nats stream edit {name} --no-allow-rollup`"),
    ("allow_msg_schedules", False, False, _NOT_EDITABLE),
    ("allow_msg_ttl", False, False, _NOT_EDITABLE),
)
_CONSUMER: tuple[tuple[str, Any, Any, str], ...] = (
    ("deliver_subject", None, None, "it must be a pull consumer"),
    ("ack_policy", "explicit", "none", ""),
    ("deliver_policy", "all", "all", ""),
    ("replay_policy", "instant", "instant", ""),
    ("max_deliver", -1, -1, ""),  # after max_deliver the server skips the message in silence
    ("backoff", None, None, ""),  # it overrides ack_wait
    ("headers_only", False, False, ""),
    ("inactive_threshold", 0, 0, ""),  # the server would remove the consumer during a long stop
    ("mem_storage", False, False, ""),
    ("priority_groups", None, None, ""),
)


def stream_config(stream: StreamSpec, *, batches: bool = True) -> Json:
    """Spell the stream out for `STREAM.CREATE`; `batches`: the server knows them."""
    config: Json = {
        "name": stream.name,
        "subjects": list(stream.subjects),
        "storage": "file",
        "retention": "limits",
        "discard": "new" if stream.inbound else "old",
        "max_age": int(stream.max_age * _NS),
        "max_bytes": stream.max_bytes,
        "max_msg_size": stream.max_msg_size,
        "max_msgs": -1,
        "max_msgs_per_subject": -1,
        "duplicate_window": int(_window(stream) * _NS),
        "num_replicas": stream.replicas,
        **guards_missing({}),
        "allow_rollup_hdrs": False,
        "allow_direct": True,
    }
    if batches and not stream.inbound:  # agents need none, and the server keeps a few open for each stream only
        config[BATCHES] = True
    return config


def guards_missing(config: Json) -> Json:
    """Return the settings that keep messages from being removed, where a stream has them not."""
    return {setting: wanted for setting, wanted, *_ in _differences(_GUARDS, config)}


def lacks_batches(stream: StreamSpec, config: Json) -> bool:
    """Tell whether the stream is as an older worker made it, which knew no batches. What an operator made or changed is left alone."""
    ours = stream_config(stream)
    same = (config.get(name) == ours[name] for name in ours if name not in (BATCHES, *SIZES))
    return bool(ours.get(BATCHES)) and not config.get(BATCHES) and all(same)


def is_unlimited(config: Json, setting: str) -> bool:
    """Tell whether a stream has no limit of this kind; older servers write that as 0."""
    return int(config.get(setting) or -1) < 0


def limits_of(stream: StreamSpec) -> Json:
    """Spell out the limits that are asked for, but for a share."""
    ours = stream_config(stream)
    names = ["max_age", "duplicate_window", *(name for name in SIZES if not is_unlimited(ours, name))]
    return {name: ours[name] for name in names}


def consumer_config(source: ConsumerSpec, filters: tuple[str, ...] = ()) -> Json:
    """Spell the consumer out for `CONSUMER.CREATE`; `filters`: what it takes of its stream, everything where there are none."""
    config: Json = {
        "name": source.consumer,
        "durable_name": source.consumer,
        "ack_policy": "explicit",
        "ack_wait": int(source.ack_wait * _NS),
        "max_ack_pending": source.max_ack_pending,
        "max_deliver": -1,
        "deliver_policy": "all",
        "replay_policy": "instant",
    }
    if filters:
        config["filter_subjects"] = list(filters)
    return config


def stream_objections(stream: StreamSpec, config: Json) -> list[str]:
    """List the settings of an existing stream that would break a promise, one sentence each."""
    table = _EVERY_STREAM + (_INBOUND_STREAM if stream.inbound else ())
    found = [
        f"stream {stream.name}: {setting} is {_shown(actual)}, it must be {_shown(wanted)}; {repair.format(name=stream.name)}"
        for setting, wanted, actual, repair in _differences(table, config)
    ]
    return found + [f"stream {stream.name}: {setting} must be unset; take it out of the source" for setting, _ in _of_sources(config)]


def transform_objections(source: ConsumerSpec, config: Json) -> list[str]:
    """List what keeps messages of a stream that is not the worker's own from the reply bindings on it, one sentence each.

    A binding on what a subject becomes is fine; one on what it was is never reached.
    """
    found = []
    own = config.get("subject_transform")
    for setting, transform in [*([("subject_transform", own)] if own else []), *_of_sources(config)]:
        becomes = _MAPPING.sub("*", transform.get("dest") or ">")
        found += [
            f"stream {source.stream}: {setting} stores what comes on {subject} as {becomes}, so the reply binding {subject} never gets it; "
            "bind what it becomes, or take the transform out"
            for subject in source.filters
            if overlap(transform.get("src") or ">", subject) and not overlap(becomes, subject)
        ]
    return found


def _of_sources(config: Json) -> list[tuple[str, Json]]:
    """List the transforms of subjects that a stream's sources have, each with the name of the setting."""
    return [
        (f"subject_transforms of its source {source.get('name')}", transform)
        for source in config.get("sources") or ()
        for transform in source.get("subject_transforms") or ()
    ]


def distrust(source: ConsumerSpec, stream: Json, consumer: Json) -> list[str]:
    """Say that what is delivered may not be what was sent: from somebody else, by itself, or without its body.

    `stream`: the configuration of one of the worker's own; empty for somebody else's.
    """
    forged = stream.get("subject_transform") or stream.get("allow_msg_schedules") or _of_sources(stream)
    if not forged and not consumer.get("headers_only"):
        return []
    what = "messages may be from somebody else than their subject says" if forged else "messages come without their bodies"
    return [f"nothing is taken from consumer {source.consumer} of stream {source.stream} until this is changed back: {what}"]


def pauses(source: ConsumerSpec, info: Json) -> list[str]:
    """Say that a consumer is paused: it delivers nothing then, and says nothing about it."""
    if not info.get("paused"):
        return []
    name, until = f"consumer {source.consumer} of stream {source.stream}", info["config"].get("pause_until", "?")
    resume = f"nats consumer resume {source.stream} {source.consumer}"
    return [f"{name} is paused until {until}: nothing is delivered meanwhile; resume it with `{resume}`"]


def stream_remarks(stream: StreamSpec, config: Json) -> list[str]:
    """List the settings of an existing stream that are weaker than asked for, but break nothing."""
    remarks = []
    age = config.get("max_age") or 0
    if age and age < stream.max_age * _NS:
        remarks.append(f"stream {stream.name}: max_age is {age / _NS:g} s, {stream.max_age:g} s were asked for")
    window = config.get("duplicate_window") or 0
    if window < _window(stream) * _NS:
        remarks.append(f"stream {stream.name}: duplicate_window is {window / _NS:g} s, {_window(stream):g} s were asked for")
    for name in SIZES:
        has, asked = config.get(name) or -1, stream_config(stream)[name]
        if 0 < has < asked:
            remarks.append(f"stream {stream.name}: {name} is {has:,}, {asked:,} were asked for")
    lacking = () if stream.inbound else tuple(guards_missing(config))  # of an inbound one they are objections
    if lacking:
        flags = " ".join("--" + name.replace("_", "-") for name in lacking)
        remarks.append(
            f"stream {stream.name}: {' and '.join(lacking)} must be true, or agents can have messages of it removed by a server before "
            f"2.12, or with `strict: false`: run `taskflow provision`, or `nats stream edit {stream.name} {flags}`"
        )
    return remarks


def config_in(info: Json | None) -> Json | None:
    """Return the configuration in what is told of a stream or consumer; None where there is none."""
    return None if info is None else info["config"]


def subjects_with(stream: StreamSpec, config: Json) -> list[str] | None:
    """Return the stream's subjects with the missing ones added, or None when none is missing."""
    present: list[str] = list(config.get("subjects") or ())
    missing = [wanted for wanted in stream.subjects if not any(covers(has, wanted) for has in present)]
    if not missing:
        return None
    # A stream's own subjects must not overlap: what a new, wider one covers has to go.
    return [has for has in present if not any(covers(wanted, has) for wanted in missing)] + missing


def consumer_objections(source: ConsumerSpec, config: Json) -> list[str]:
    """List the settings of an existing consumer that would break a promise, one sentence each; for what it takes see `filters`."""
    where = f"consumer {source.consumer} of stream {source.stream}"
    repair = f"remove it with `nats consumer rm {source.stream} {source.consumer}` while the worker is stopped; it is created again"
    found = [
        f"{where}: {setting} is {_shown(actual)}, it must be {_shown(wanted)}; {f'{extra}; ' if extra else ''}{repair}"
        for setting, wanted, actual, extra in _differences(_CONSUMER, config)
    ]
    wait = config.get("ack_wait") or 0
    if wait < _NS:
        found.append(f"{where}: ack_wait is {wait / _NS:g} s, it must be at least 1 s; {repair}")
    return found


def sync_warning(varz: Json) -> str | None:
    """Say that a single server may lose acknowledged messages in a power cut, unless its `/varz` says it syncs always."""
    jetstream = varz.get("jetstream")
    config = jetstream.get("config") if isinstance(jetstream, dict) else None
    if not isinstance(config, dict) or config.get("sync_always") is True:
        return None
    interval = config.get("sync_interval")
    every = f"every {interval / _NS:g} s" if isinstance(interval, int) else "now and then"
    return (
        f"the NATS server writes streams to disk only {every}: a power cut can lose acknowledged messages of a stream with one "
        "replica; set `jetstream { sync_interval: always }`"
    )


def version_objection(version: str) -> str | None:
    """Refuse servers that lost streams when their process was killed (Jepsen, 2025). Versions that are no numbers pass."""
    if (_release(version) or _OLDEST_SERVER) >= _OLDEST_SERVER:
        return None
    return f"the NATS server is {version}; before {'.'.join(map(str, _OLDEST_SERVER))} a killed server could lose a stream: upgrade it"


def knows_batches(version: str) -> bool:
    """Tell whether a server knows atomic batches."""
    return (_release(version) or ()) >= _BATCHING_SERVER


def _release(version: str) -> tuple[int, ...] | None:
    """Read a version's numbers; None where it has none."""
    parts = version.partition("-")[0].split(".")
    return tuple(map(int, parts)) if all(part.isdigit() for part in parts) else None


def _differences(table: tuple[tuple[str, Any, Any, str], ...], config: Json) -> list[tuple[str, Any, Any, str]]:
    """Compare a configuration with a table; yields setting, wanted, actual, repair."""
    found = []
    for setting, wanted, absent, repair in table:
        actual = config.get(setting, absent)
        if setting.startswith("max_") and actual == 0:
            actual = -1  # older servers write "no limit" as 0
        if (actual or None) != (wanted or None):
            found.append((setting, wanted, actual, repair))
    return found


def _window(stream: StreamSpec) -> float:
    """Return the duplicate window in seconds; the server refuses one longer than max_age."""
    return min(stream.duplicate_window, stream.max_age) if stream.max_age > 0 else stream.duplicate_window


def _shown(value: Any) -> str:
    """Show a setting the way configuration files write it."""
    if value is None or value == []:
        return "unset"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(map(str, value)) + "]"
    return str(value)
