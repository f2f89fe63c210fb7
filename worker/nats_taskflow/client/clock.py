"""The client's clock, replaceable by the test kit's virtual one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

Now = Callable[[], datetime]


def _system_time() -> datetime:
    return datetime.now(UTC)


_source: list[Now] = [_system_time]


def now() -> datetime:
    """Return the time, aware, in UTC."""
    return _source[-1]()


@contextmanager
def use_clock(clock: Now) -> Iterator[None]:
    """Use another clock while the block lasts, in the whole process."""
    _source.append(clock)
    try:
        yield
    finally:
        _source.remove(clock)
