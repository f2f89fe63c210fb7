"""Work out which subjects a consumer takes of its stream. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from nats_taskflow.bus.port import ConsumerSpec
from nats_taskflow.bus.setting_rules import Json
from nats_taskflow.wire.subjects import covers, overlap


def filters_for(source: ConsumerSpec, subjects: Iterable[str]) -> tuple[str, ...]:
    """Return a consumer's filters on a stream that captures `subjects`.

    No filter means all subjects. With `all_but`, the filters include what the stream captures beyond `source.filters`: its publishers were
    told that it is stored, so a worker has to take it.
    """
    if not source.all_but:
        return source.filters
    present = [subject for subject in subjects if not any(overlap(subject, other) for other in source.all_but)]
    present = [subject for subject in present if not any(covers(own, subject) for own in source.filters)]
    return (*[own for own in source.filters if not any(covers(subject, own) for subject in present)], *present)


def filters_in(config: Json) -> set[str]:
    """Return a consumer's filters.

    The server keeps a single one in a field of its own.
    """
    several = set(config.get("filter_subjects") or ())
    single = config.get("filter_subject")
    return several | {single} if single else several


def with_filters(config: Json, filters: Iterable[str]) -> Json:
    """Return the configuration with these filters in place of its own."""
    return {name: value for name, value in config.items() if name != "filter_subject"} | {"filter_subjects": list(filters)}


def covers_all(config: Json, filters: Iterable[str]) -> bool:
    """Return whether a consumer takes everything that the filters would."""
    present = filters_in(config)
    return not present or all(any(covers(wide, narrow) for wide in present) for narrow in filters)


def find_predecessor(source: ConsumerSpec, filters: Iterable[str], present: Mapping[ConsumerSpec, Json]) -> Json | None:
    """Return the info of the consumer that has taken these subjects so far, if any."""
    same = (info for other, info in present.items() if other.stream == source.stream)
    return next((info for info in same if covers_all(info["config"], filters)), None)


def is_adaptable(source: ConsumerSpec, config: Json, filters: tuple[str, ...], *, own: bool) -> bool:
    """Return whether a consumer's filters may be replaced.

    They may if the consumer takes too little, or too much of the worker's `own` stream, as an older worker's consumer does, which takes
    everything. Filters that an operator chose are left alone.
    """
    present = filters_in(config)
    if source.all_but:
        return True
    return bool(filters) and (own if not present else present <= set(filters))
