"""Get loggers without loading structlog before something is logged: a command that asks one question logs nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_configure: list[Callable[[], None]] = []


def configure_at_first_use(configure: Callable[[], None]) -> None:
    """Have logging configured when something is logged, not now."""
    _configure.append(configure)


class Logger:
    """One of structlog's loggers, made when it is used."""

    def __getattr__(self, name: str) -> Any:
        """Return a method of the logger: `info`, `warning`, …"""
        while _configure:
            _configure.pop()()
        import structlog  # noqa: PLC0415 - see above

        return getattr(structlog.get_logger(), name)
