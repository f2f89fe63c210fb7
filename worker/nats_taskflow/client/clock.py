"""What time it is for the agents' side. The test kit puts its virtual clock here: deadlines then mean the worker's time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

Now = Callable[[], datetime]


def _real() -> datetime:
    """Return the time of this machine."""
    return datetime.now(UTC)


_source: list[Now] = [_real]


def now() -> datetime:
    """Return the time, aware, in UTC."""
    return _source[-1]()


@contextmanager
def use_clock(clock: Now) -> Iterator[None]:
    """Have the time told by another clock meanwhile, in the whole process."""
    _source.append(clock)
    try:
        yield
    finally:
        _source.remove(clock)
