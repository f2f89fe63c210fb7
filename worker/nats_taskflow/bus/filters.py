"""Tell what a consumer has to take of its stream, and what an existing one takes instead. Pure: JSON in, sentences out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from nats_taskflow.bus.port import ConsumerSpec
from nats_taskflow.bus.setting_rules import Json
from nats_taskflow.wire.subjects import covers, overlap


def filters_for(source: ConsumerSpec, subjects: Iterable[str]) -> tuple[str, ...]:
    """Return the filters of a consumer on a stream that captures `subjects`; none: it takes everything.

    Also what the stream captures beyond what is asked for: somebody who publishes there is told that it is stored, so it has to be taken.
    """
    if not source.all_but:
        return source.filters
    present = [subject for subject in subjects if not any(overlap(subject, other) for other in source.all_but)]
    present = [subject for subject in present if not any(covers(asked, subject) for asked in source.filters)]
    return (*[asked for asked in source.filters if not any(covers(subject, asked) for subject in present)], *present)


def filters_in(config: Json) -> set[str]:
    """Return a consumer's filters: the server keeps a single one apart."""
    several = set(config.get("filter_subjects") or ())
    single = config.get("filter_subject")
    return several | {single} if single else several


def with_filters(config: Json, filters: Iterable[str]) -> Json:
    """Return a consumer's configuration with other filters."""
    return {name: value for name, value in config.items() if name != "filter_subject"} | {"filter_subjects": list(filters)}


def covers_all(config: Json, filters: Iterable[str]) -> bool:
    """Tell whether a consumer takes everything that the filters take."""
    present = filters_in(config)
    return not present or all(any(covers(has, asked) for has in present) for asked in filters)


def find_predecessor(source: ConsumerSpec, filters: Iterable[str], present: Mapping[ConsumerSpec, Json]) -> Json | None:
    """Return what is told of the consumer that takes by now what a new one is to take; None where there is none."""
    same = (info for other, info in present.items() if other.stream == source.stream)
    return next((info for info in same if covers_all(info["config"], filters)), None)


def is_adaptable(source: ConsumerSpec, config: Json, filters: tuple[str, ...], *, own: bool) -> bool:
    """Tell whether an existing consumer may be given the filters: it takes too little, or, on the worker's `own` stream, too much.

    A consumer of an older worker takes everything. What somebody else has set for reasons of theirs is left alone.
    """
    present = filters_in(config)
    if source.all_but:
        return True
    return bool(filters) and (own if not present else present <= set(filters))


def objections(source: ConsumerSpec, config: Json, filters: tuple[str, ...]) -> list[str]:
    """Say that a consumer takes something else than it has to."""
    present = filters_in(config)
    if present == set(filters):
        return []
    has, asked = (f"[{', '.join(sorted(names))}]" if names else "unset" for names in (present, filters))
    repair = f"remove it with `nats consumer rm {source.stream} {source.consumer}` while the worker is stopped; it is created again"
    return [f"consumer {source.consumer} of stream {source.stream}: filter_subjects is {has}, it must be {asked}; {repair}"]
