"""Say what a stream's settings must be, and what is wrong with those of an existing one. Pure: JSON in, sentences out."""

from __future__ import annotations

import re

from nats_taskflow.bus.port import ConsumerSpec, StreamSpec
from nats_taskflow.bus.setting_rules import Json, Rule, broken_rules
from nats_taskflow.wire.subjects import covers, overlap

_NS = 1_000_000_000
_NOT_EDITABLE = "it cannot be edited: move the messages to a new stream, or remove this one with `nats stream rm {name}`"
SIZES = ("max_bytes", "max_msg_size")
"""The limits of a stream that are given to one that has none."""
BATCHES = "allow_atomic"
"""The setting of a stream that takes atomic batches (ADR-50)."""

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
# The server's PubAck goes, with the server's rights, wherever a publisher says: also to its own API, where older servers, and such with
# `strict: false`, take `{"stream": …, "seq": …}` for a request to purge, or to remove that message.
_GUARDS = (
    Rule("deny_delete", must_be=True, absent=False, repair="`nats stream edit {name} --deny-delete`"),
    Rule("deny_purge", must_be=True, absent=False, repair="`nats stream edit {name} --deny-purge`"),
)
# Agents publish here. Each of these lets a publisher, or a full stream, erase or forge what others were promised is stored.
_INBOUND_STREAM = (
    Rule("discard", must_be="new", absent="old", repair="`nats stream edit {name} --discard new`"),
    *_GUARDS,
    Rule("allow_rollup_hdrs", must_be=False, absent=False, repair="`nats stream edit {name} --no-allow-rollup`"),
    Rule("allow_msg_schedules", must_be=False, absent=False, repair=_NOT_EDITABLE),
    Rule("allow_msg_ttl", must_be=False, absent=False, repair=_NOT_EDITABLE),
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
        **missing_guards({}),
        "allow_rollup_hdrs": False,
        "allow_direct": True,
    }
    if batches and not stream.inbound:  # agents need none, and the server keeps a few open for each stream only
        config[BATCHES] = True
    return config


def missing_guards(config: Json) -> Json:
    """Return the settings that keep messages from being removed, where a stream has them not."""
    return {broken.rule.setting: broken.rule.must_be for broken in broken_rules(_GUARDS, config)}


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


def stream_objections(stream: StreamSpec, config: Json) -> list[str]:
    """List the settings of an existing stream that would break a promise, one sentence each."""
    table = _EVERY_STREAM + (_INBOUND_STREAM if stream.inbound else ())
    flaws = [f"stream {stream.name}: {broken}; {broken.rule.repair.format(name=stream.name)}" for broken in broken_rules(table, config)]
    transforms = (setting for setting, _ in source_transforms(config))
    return flaws + [f"stream {stream.name}: {setting} must be unset; take it out of the source" for setting in transforms]


def transform_objections(source: ConsumerSpec, config: Json) -> list[str]:
    """List what keeps messages of a stream that is not the worker's own from the reply bindings on it, one sentence each.

    A binding on what a subject becomes is fine; one on what it was is never reached.
    """
    found = []
    own = config.get("subject_transform")
    for setting, transform in [*([("subject_transform", own)] if own else []), *source_transforms(config)]:
        becomes = _MAPPING.sub("*", transform.get("dest") or ">")
        found += [
            f"stream {source.stream}: {setting} stores what comes on {subject} as {becomes}, so the reply binding {subject} never gets it; "
            "bind what it becomes, or take the transform out"
            for subject in source.filters
            if overlap(transform.get("src") or ">", subject) and not overlap(becomes, subject)
        ]
    return found


def source_transforms(config: Json) -> list[tuple[str, Json]]:
    """List the transforms of subjects that a stream's sources have, each with the name of the setting."""
    return [
        (f"subject_transforms of its source {source.get('name')}", transform)
        for source in config.get("sources") or ()
        for transform in source.get("subject_transforms") or ()
    ]


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
    lacking = () if stream.inbound else tuple(missing_guards(config))  # of an inbound one they are objections
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


def extended_subjects(stream: StreamSpec, config: Json) -> list[str] | None:
    """Return the stream's subjects with the missing ones added, or None when none is missing."""
    present: list[str] = list(config.get("subjects") or ())
    missing = [wanted for wanted in stream.subjects if not any(covers(has, wanted) for has in present)]
    if not missing:
        return None
    # A stream's own subjects must not overlap: what a new, wider one covers has to go.
    return [has for has in present if not any(covers(wanted, has) for wanted in missing)] + missing


def _window(stream: StreamSpec) -> float:
    """Return the duplicate window in seconds; the server refuses one longer than max_age."""
    return min(stream.duplicate_window, stream.max_age) if stream.max_age > 0 else stream.duplicate_window
