"""Parse the configuration's arrays of tables, `[[replies]]` and `[[delegates]]`.

Their rules are in `wire.reply_bindings` and `wire.delegates`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import msgspec

from nats_taskflow.config.parsers import RawValue
from nats_taskflow.wire.delegates import DelegateOwners, check_delegate
from nats_taskflow.wire.reply_bindings import Binding, check_binding, check_bindings
from nats_taskflow.wire.subjects import Subjects

_T = TypeVar("_T", bound=msgspec.Struct)


def read_replies(raw: RawValue) -> tuple[Binding, ...]:
    """Parse the reply bindings."""
    return _read("replies", raw, Binding, check_binding)


def read_delegates(raw: RawValue) -> tuple[DelegateOwners, ...]:
    """Parse which agents own which delegates."""
    return _read("delegates", raw, DelegateOwners, check_delegate)


def _read(section: str, raw: RawValue, kind: type[_T], check: Callable[[_T], None]) -> tuple[_T, ...]:
    """Parse an array of tables, or the same as JSON text.

    Raises `ValueError`, which names the table and the field.
    """
    tables = raw.value
    if raw.text:
        try:
            tables = msgspec.json.decode(raw.value)
        except (msgspec.DecodeError, RecursionError) as failure:
            raise ValueError(f'must be a JSON list of tables, like [{{"subject": "agent.reply"}}] ({failure})') from failure
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ValueError(f"must be tables written as [[{section}]], each with a subject")
    return tuple(_read_one(f"[[{section}]] number {at}", table, kind, check) for at, table in enumerate(tables, start=1))


def _read_one(name: str, table: dict[str, Any], kind: type[_T], check: Callable[[_T], None]) -> _T:
    """Parse one table; `name` identifies it in errors."""
    known = kind.__struct_fields__
    unknown = sorted(set(table) - set(known))
    if unknown:
        raise ValueError(f"{name}: unknown field {unknown[0]!r}; known are {', '.join(known)}")
    try:
        row = msgspec.convert(table, kind)
        check(row)
    except ValueError as failure:
        raise ValueError(f"{name}: {failure}") from failure
    return row


def merge_bindings(topics: Iterable[str], explicit: Iterable[Binding], prefix: str) -> tuple[Binding, ...]:
    """Return every binding: explicit ones, then a default one for each topic.

    A topic that an explicit one names exactly has no default.

    Raises `ValueError` where they contradict each other, or capture the worker's own subjects.
    """
    bindings = list(explicit)
    subjects = {binding.subject for binding in bindings}
    bindings += [Binding(topic) for topic in dict.fromkeys(topics) if topic not in subjects]
    check_bindings(bindings, Subjects(prefix))
    return tuple(bindings)
