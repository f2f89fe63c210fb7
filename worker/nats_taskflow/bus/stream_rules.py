"""Say what a stream's settings must be, and what is wrong with present ones.

Pure: JSON in, sentences out.
"""

from __future__ import annotations

import re

from nats_taskflow.bus.port import ConsumerSpec, StreamSpec
from nats_taskflow.bus.setting_rules import NS_PER_S, Json, Rule, broken_rules
from nats_taskflow.wire.subjects import covers, overlap

_NOT_EDITABLE = "it cannot be edited: move the messages to a new stream, or remove this one with `nats stream rm {name}`"
SIZES = ("max_bytes", "max_msg_size")
"""The limits that a stream without any is given."""
BATCHES = "allow_atomic"
"""The setting that lets a stream take atomic batches (ADR-50)."""

_MAPPING = re.compile(r"\{\{[^}]*\}\}|\$\d+")
"""A token of a transform's destination that is made from the subject: `{{wildcard(1)}}`, `$1`, `{{partition(8,2)}}`."""

_EVERY_STREAM = (
    Rule("storage", must_be="file", absent="file", repair=_NOT_EDITABLE),
    Rule("retention", must_be="limits", absent="limits", repair=_NOT_EDITABLE),
    # It would drop events from the middle of a flow.
    Rule("max_msgs_per_subject", must_be=-1, absent=-1, repair="`nats stream edit {name} --max-msgs-per-subject=-1`"),
    Rule("no_ack", must_be=False, absent=False, repair="`nats stream edit {name} --ack`"),
    Rule("sealed", must_be=False, absent=False, repair=_NOT_EDITABLE),
    Rule("mirror", must_be=None, absent=None, repair=_NOT_EDITABLE),
    Rule("persist_mode", must_be="default", absent="default", repair=_NOT_EDITABLE),
    Rule("allow_msg_counter", must_be=False, absent=False, repair=_NOT_EDITABLE),
    # The subject says who a message is from, and whom an event is for.
    Rule("subject_transform", must_be=None, absent=None, repair="take it out with `nats stream edit {name} --interactive`"),
)
# A publisher chooses where the server sends its PubAck, with the server's rights: even to the server's own API. Older servers, and those
# with `strict: false`, read the PubAck's `{"stream": …, "seq": …}` there as a request to purge, or to remove that message.
_GUARDS = (
    Rule("deny_delete", must_be=True, absent=False, repair="`nats stream edit {name} --deny-delete`"),
    Rule("deny_purge", must_be=True, absent=False, repair="`nats stream edit {name} --deny-purge`"),
)
# Agents publish here. Each of these would let a publisher, or a full stream, erase or forge messages that others know are stored.
_INBOUND_STREAM = (
    Rule("discard", must_be="new", absent="old", repair="`nats stream edit {name} --discard new`"),
    *_GUARDS,
    Rule("allow_rollup_hdrs", must_be=False, absent=False, repair="`nats stream edit {name} --no-allow-rollup`"),
    Rule("allow_msg_schedules", must_be=False, absent=False, repair=_NOT_EDITABLE),
    Rule("allow_msg_ttl", must_be=False, absent=False, repair=_NOT_EDITABLE),
)


def stream_config(stream: StreamSpec, *, batches: bool = True) -> Json:
    """Return the configuration for `STREAM.CREATE`.

    `batches`: the server knows atomic batches.
    """
    config: Json = {
        "name": stream.name,
        "subjects": list(stream.subjects),
        "storage": "file",
        "retention": "limits",
        "discard": "new" if stream.inbound else "old",
        "max_age": int(stream.max_age * NS_PER_S),
        "max_bytes": stream.max_bytes,
        "max_msg_size": stream.max_msg_size,
        "max_msgs": -1,
        "max_msgs_per_subject": -1,
        "duplicate_window": int(_window(stream) * NS_PER_S),
        "num_replicas": stream.replicas,
        **missing_guards({}),
        "allow_rollup_hdrs": False,
        "allow_direct": True,
    }
    if batches and not stream.inbound:  # agents need none, and the server keeps a few open for each stream only
        config[BATCHES] = True
    return config


def missing_guards(config: Json) -> Json:
    """Return the settings that a stream lacks to keep its messages from being removed."""
    return {broken.rule.setting: broken.rule.must_be for broken in broken_rules(_GUARDS, config)}


def lacks_batches(stream: StreamSpec, config: Json) -> bool:
    """Return whether the stream is as an older worker made it, without batches.

    A stream that an operator changed is left alone.
    """
    ours = stream_config(stream)
    same = (config.get(name) == ours[name] for name in ours if name not in (BATCHES, *SIZES))
    return bool(ours.get(BATCHES)) and not config.get(BATCHES) and all(same)


def is_unlimited(config: Json, setting: str) -> bool:
    """Return whether a stream has no limit of this kind."""
    # Older servers write that as 0.
    return int(config.get(setting) or -1) < 0


def limits_of(stream: StreamSpec) -> Json:
    """Return the limits that the settings ask for.

    A share of the broker's storage is not among them.
    """
    ours = stream_config(stream)
    names = ["max_age", "duplicate_window", *(name for name in SIZES if not is_unlimited(ours, name))]
    return {name: ours[name] for name in names}


def stream_objections(stream: StreamSpec, config: Json) -> list[str]:
    """List the settings of an existing stream that would break a promise.

    Each is a sentence.
    """
    table = _EVERY_STREAM + (_INBOUND_STREAM if stream.inbound else ())
    flaws = [f"stream {stream.name}: {broken}; {broken.rule.repair.format(name=stream.name)}" for broken in broken_rules(table, config)]
    transforms = (setting for setting, _ in source_transforms(config))
    return flaws + [f"stream {stream.name}: {setting} must be unset; take it out of the source" for setting in transforms]


def transform_objections(source: ConsumerSpec, config: Json) -> list[str]:
    """List the transforms of somebody else's stream that hide messages from a binding.

    Each is a sentence. A binding must name the subject that a transform makes; one on the subject before it is never reached.
    """
    flaws = []
    own = config.get("subject_transform")
    for setting, transform in [*([("subject_transform", own)] if own else []), *source_transforms(config)]:
        becomes = _MAPPING.sub("*", transform.get("dest") or ">")
        flaws += [
            f"stream {source.stream}: {setting} stores what comes on {subject} as {becomes}, so the reply binding {subject} never gets it; "
            "bind what it becomes, or take the transform out"
            for subject in source.filters
            if overlap(transform.get("src") or ">", subject) and not overlap(becomes, subject)
        ]
    return flaws


def source_transforms(config: Json) -> list[tuple[str, Json]]:
    """List the subject transforms in a stream's sources, with their settings' names."""
    return [
        (f"subject_transforms of its source {source.get('name')}", transform)
        for source in config.get("sources") or ()
        for transform in source.get("subject_transforms") or ()
    ]


def stream_remarks(stream: StreamSpec, config: Json) -> list[str]:
    """List the settings of an existing stream that are weaker than asked for.

    They break no promise.
    """
    remarks = []
    age = config.get("max_age") or 0
    if age and age < stream.max_age * NS_PER_S:
        remarks.append(f"stream {stream.name}: max_age is {age / NS_PER_S:g} s, {stream.max_age:g} s were asked for")
    window = config.get("duplicate_window") or 0
    if window < _window(stream) * NS_PER_S:
        remarks.append(f"stream {stream.name}: duplicate_window is {window / NS_PER_S:g} s, {_window(stream):g} s were asked for")
    for name in SIZES:
        actual, wanted = config.get(name) or -1, stream_config(stream)[name]
        if 0 < actual < wanted:
            remarks.append(f"stream {stream.name}: {name} is {actual:,}, {wanted:,} were asked for")
    lacking = () if stream.inbound else tuple(missing_guards(config))  # for an inbound one they are objections
    if lacking:
        flags = " ".join("--" + name.replace("_", "-") for name in lacking)
        remarks.append(
            f"stream {stream.name}: {' and '.join(lacking)} must be true, or agents can have messages of it removed by a server before "
            f"2.12, or with `strict: false`: run `taskflow provision`, or `nats stream edit {stream.name} {flags}`"
        )
    return remarks


def extended_subjects(stream: StreamSpec, config: Json) -> list[str] | None:
    """Return the stream's subjects with the missing ones added, or None if complete."""
    present: list[str] = list(config.get("subjects") or ())
    missing = [subject for subject in stream.subjects if not any(covers(pattern, subject) for pattern in present)]
    if not missing:
        return None
    # The subjects of one stream must not overlap: what a new, wider one covers has to go.
    return [subject for subject in present if not any(covers(pattern, subject) for pattern in missing)] + missing


def _window(stream: StreamSpec) -> float:
    # In seconds. The server refuses one that is longer than max_age.
    return min(stream.duplicate_window, stream.max_age) if stream.max_age > 0 else stream.duplicate_window
