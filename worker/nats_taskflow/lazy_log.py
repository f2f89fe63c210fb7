"""Load structlog at the first log call, not at import.

A command that asks one question logs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_configure: list[Callable[[], None]] = []


def configure_at_first_use(configure: Callable[[], None]) -> None:
    """Call `configure` before the first log call."""
    _configure.append(configure)


class Logger:
    """A structlog logger that is made when it is used."""

    def __getattr__(self, name: str) -> Any:
        """Return a method of the logger: `info`, `warning`, …"""
        while _configure:
            _configure.pop()()
        import structlog  # noqa: PLC0415 - see above

        return getattr(structlog.get_logger(), name)
