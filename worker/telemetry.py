"""Say what happens: how log lines look, and the name of every log event. One record is one line on stderr, JSON where nobody watches,
readable text on a terminal.
"""

from __future__ import annotations

import io
import json
import logging
import os
import sys
from collections.abc import Mapping, MutableMapping
from enum import StrEnum
from typing import Any, TextIO, cast

import structlog

from worker.config.tree import Log


class Said(StrEnum):
    """Every log event; what differs between two records of one event goes into fields."""

    STARTING = "worker.starting"
    READY = "worker.ready"
    STOPPING = "worker.stopping"
    STOPPED = "worker.stopped"
    STOPPED_AT_ONCE = "worker.stopped_at_once"
    STORE_OPENED = "store.opened"
    STORE_UNAVAILABLE = "store.unavailable"
    STORE_RECOVERED = "store.recovered"
    STORE_NOT_CLOSED = "store.not_closed"
    BUS_CONNECTED = "bus.connected"
    BUS_DISCONNECTED = "bus.disconnected"
    BUS_RECONNECTED = "bus.reconnected"
    BUS_ERROR = "bus.error"
    STREAM_CREATED = "topology.stream_created"
    PROVISIONED = "topology.provisioned"
    STREAM_AT_RISK = "topology.stream_at_risk"
    PULL_INTERRUPTED = "pull.interrupted"
    DELIVERY_RETRIED = "consumer.delivery_retried"
    DEAD_LETTERED = "consumer.dead_lettered"
    COMMAND_REFUSED = "consumer.command_refused"
    TICK = "wait engine tick"  # as the reference system spells it: people search for it
    FLOW_SET_ASIDE = "store.flow_set_aside"
    RELAY_BEHIND = "relay.behind"
    PRUNED = "pruner.pruned"
    DEFECT = "defect"
    FROM_LIBRARY = "library.log"


def configure_logging(log: Log, stream: TextIO | None = None) -> None:
    """Send all logging of this process, libraries' warnings included, to `stream` (stderr) as `log` says. Call once, at start."""
    out = sys.stderr if stream is None else stream
    console = log.format == "console" or (log.format == "auto" and out.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        name_logger,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="timestamp"),
        structlog.processors.StackInfoRenderer(),
    ]
    shown: list[structlog.typing.Processor] = (
        [printable, structlog.dev.ConsoleRenderer(colors=_coloured(out), exception_formatter=printable_traceback)]
        if console
        else [structlog.processors.format_exc_info, one_line]
    )
    level = logging.getLevelNamesMapping()[log.level.upper()]
    structlog.configure(
        processors=[*shared, *shown],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *names: NamedWriter(out, *names),
        cache_logger_on_first_use=True,  # a look-up on each call would cost more than a filtered call does
    )
    root = logging.getLogger()
    root.handlers = [FromLibrary()]
    root.setLevel(max(level, logging.WARNING))  # below it aiosqlite logs statements with their values, which are payloads


def _coloured(out: TextIO) -> bool:
    """Tell whether a stream takes colours: it is a terminal, and nobody has said that it does not (no-color.org)."""
    return out.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def logger(name: str) -> structlog.typing.FilteringBoundLogger:
    """Give a logger whose records carry `logger: name`; the same as `structlog.get_logger(name)`, typed."""
    return cast("structlog.typing.FilteringBoundLogger", structlog.get_logger(name))


class NamedWriter(structlog.WriteLogger):
    """Writes lines to a stream, and remembers whose they are."""

    def __init__(self, out: TextIO, name: str = "") -> None:
        super().__init__(out)
        self.name = name


def name_logger(writer: object, _method: str, record: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Add the logger's name, where it has one."""
    name = getattr(writer, "name", "")
    if name:
        record.setdefault("logger", name)
    return record


def one_line(_logger: object, _method: str, record: MutableMapping[str, Any]) -> str:
    """Render a record as one line of ASCII JSON, whatever is in it: no text in it can begin a second line or a second record."""
    try:
        return _encode(record)
    except (TypeError, ValueError, RecursionError):  # a NaN, a key that is no text, a structure that contains itself
        return _encode({str(key): value if _plain(value) else _described(value) for key, value in record.items()})


def _encode(record: Mapping[str, Any]) -> str:
    """Write JSON. Everything outside ASCII is escaped, since U+2028 and U+0085 end a line for many readers."""
    return json.dumps(record, default=_described, allow_nan=False, separators=(",", ":"))


def _plain(value: object) -> bool:
    """Tell whether a value can go into JSON as it is."""
    return value is None or isinstance(value, str | int)


def _described(value: object) -> str:
    """Give the `repr` of a value that JSON does not have."""
    try:
        return repr(value)
    except Exception:  # noqa: BLE001 - a broken or too deep __repr__ must not turn a log call into a failure
        return f"<{type(value).__name__}>"


def printable(_logger: object, _method: str, record: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Escape control characters in texts, so that nobody's message can move the cursor of the terminal that shows it."""
    return {key: _visible(value) if isinstance(value, str) else value for key, value in record.items()}


def printable_traceback(out: TextIO, failure: structlog.typing.ExcInfo) -> None:
    """Write a traceback over its lines; what the error's message quotes of somebody's text is escaped like any other."""
    told = io.StringIO()
    structlog.dev.plain_traceback(told, failure)
    out.write("\n".join(map(_visible, told.getvalue().split("\n"))))


def _visible(text: str) -> str:
    """Escape what does not print."""
    return text if text.isprintable() else "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class FromLibrary(logging.Handler):
    """Hand what a library logs through the standard library to structlog, in the same form as our own records."""

    def emit(self, record: logging.LogRecord) -> None:
        """Log one record of a library under its own logger's name."""
        told = logger(record.name)
        told.log(record.levelno, Said.FROM_LIBRARY, message=record.getMessage(), exc_info=record.exc_info or None)
