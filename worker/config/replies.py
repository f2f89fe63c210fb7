"""Read the reply bindings as they are written in the configuration; what they mean and whether they can work is for `wire.bindings`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from worker.config.readers import Raw
from worker.wire.bindings import Binding, check_binding, check_bindings
from worker.wire.subjects import Subjects


def read_replies(raw: Raw) -> tuple[Binding, ...]:
    """Read all bindings: an array of tables, or the same as JSON text. Raise `ValueError` naming the table and the field."""
    tables = raw.value
    if raw.text:
        try:
            tables = msgspec.json.decode(raw.value)
        except (msgspec.DecodeError, RecursionError) as failure:
            raise ValueError(f'must be a JSON list of bindings, like [{{"subject": "agent.reply"}}] ({failure})') from failure
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ValueError("must be tables written as [[replies]], each with a subject")
    return tuple(_read_one(f"[[replies]] number {at}", table) for at, table in enumerate(tables, start=1))


def _read_one(name: str, table: dict[str, Any]) -> Binding:
    """Read one binding; `name` says which in errors."""
    known = Binding.__struct_fields__
    unknown = sorted(set(table) - set(known))
    if unknown:
        raise ValueError(f"{name}: unknown field {unknown[0]!r}; known are {', '.join(known)}")
    try:
        binding = msgspec.convert(table, Binding)
        check_binding(binding)
    except ValueError as failure:
        raise ValueError(f"{name}: {failure}") from failure
    return binding


def merge_bindings(topics: Iterable[str], explicit: Iterable[Binding], prefix: str) -> tuple[Binding, ...]:
    """Give every binding: the explicit ones, then one with the defaults for each topic that none of them names exactly.

    Raise `ValueError` where they cannot work together, or catch the worker's own subjects.
    """
    given = list(explicit)
    named = {binding.subject for binding in given}
    given += [Binding(topic) for topic in dict.fromkeys(topics) if topic not in named]
    check_bindings(given, Subjects(prefix))
    return tuple(given)
