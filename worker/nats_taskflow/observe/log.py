"""Configure logging: one record is one line on stderr.

It is readable text on a terminal, JSON with its priority for the journal of systemd, JSON otherwise. The name of an event is a literal
where it is logged, and what differs between two records of one event is in fields; docs/logging.md explains each, and a test holds the
two together.
"""

from __future__ import annotations

import io
import json
import logging
import os
import socket
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, TextIO, cast

import structlog

from nats_taskflow.config.settings import LogConfig
from nats_taskflow.observe.line_writer import LineWriter
from nats_taskflow.observe.log_limit import LogRateLimit

_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
_TRACEPARENT = ("", "trace_id", "span_id", "")


def configure_logging(log: LogConfig, stream: TextIO | None = None) -> LineWriter:
    """Send all logging of this process to `stream` (stderr), libraries' too.

    Call it once, at the start. Returns the writer, which counts the lines that it cannot write.
    """
    out = sys.stderr if stream is None else stream
    lines = LineWriter(out)
    form = log.format if log.format != "auto" else "console" if _is_terminal(out) else "journald" if _is_journal(out) else "json"
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        LogRateLimit(),
        name_lost,
        name_logger,
        name_error,
        split_trace,
        structlog.processors.TimeStamper(fmt="%H:%M:%SZ" if form == "console" else "iso", utc=True, key="timestamp"),
        structlog.processors.StackInfoRenderer(),
    ]
    rendering: list[structlog.typing.Processor] = (
        [
            printable,
            structlog.dev.ConsoleRenderer(
                pad_event_to=0, pad_level=False, colors=_has_colours(out), exception_formatter=printable_traceback
            ),
        ]
        if form == "console"
        else [name_instance(socket.gethostname()), structlog.processors.format_exc_info, journal_line if form == "journald" else one_line]
    )
    level = logging.getLevelNamesMapping()[log.level.upper()]
    structlog.configure(
        processors=[*shared, *rendering],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *names: NamedWriter(lines, *names),
        cache_logger_on_first_use=True,  # a look-up would cost more than the filtered call itself
    )
    root = logging.getLogger()
    root.handlers = [LibraryHandler()]
    root.setLevel(max(level, logging.WARNING))  # below it aiosqlite logs statements with their values, which are payloads
    return lines


def _is_terminal(out: TextIO | None) -> bool:
    return out is not None and out.isatty()


def _has_colours(out: TextIO | None) -> bool:
    """Return whether a stream takes colours.

    A terminal, unless somebody has switched them off (no-color.org).
    """
    return _is_terminal(out) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def logger(name: str) -> structlog.typing.FilteringBoundLogger:
    """Return a logger whose records carry `logger: name`.

    `structlog.get_logger(name)`, typed.
    """
    return cast("structlog.typing.FilteringBoundLogger", structlog.get_logger(name))


class NamedWriter(structlog.WriteLogger):
    """Writes the lines of one logger."""

    def __init__(self, lines: LineWriter, name: str = "") -> None:
        super().__init__(cast("TextIO", lines))
        self.lines = lines
        self.name = name


def name_lost(writer: object, _method: str, record: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Add to the first record that gets through how many before it were lost."""
    lost = writer.lines.unreported if isinstance(writer, NamedWriter) else 0
    if lost:
        record["lost"] = lost
    return record


def name_logger(writer: object, _method: str, record: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Add the logger's name; where it has none, the event's prefix (`bus.error`)."""
    name = getattr(writer, "name", "") or str(record.get("event", "")).rpartition(".")[0].partition(".")[0]
    if name:
        record.setdefault("logger", name)
    return record


def name_error(_logger: object, _method: str, record: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Add `error.type` to a record with a traceback, to group by."""
    info = record.get("exc_info")
    error = info if isinstance(info, BaseException) else info[1] if isinstance(info, tuple) else sys.exc_info()[1] if info else None
    if error is not None:
        record["error.type"] = type(error).__qualname__
    return record


def split_trace(_logger: object, _method: str, record: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Show a `traceparent` as `trace_id` and `span_id`, as log viewers expect."""
    trace = record.pop("traceparent", None)
    parts = str(trace or "").split("-")
    if len(parts) == len(_TRACEPARENT):
        record.update({name: part for name, part in zip(_TRACEPARENT, parts, strict=True) if name})
    return record


def name_instance(instance: str) -> structlog.typing.Processor:
    """Return a processor that adds which machine or pod a record is from.

    Lines of many end up in one place.
    """

    def add_instance(_logger: object, _method: str, record: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        record.setdefault("instance", instance)
        return record

    return add_instance


def one_line(_logger: object, _method: str, record: MutableMapping[str, Any]) -> str:
    """Render a record as one line of ASCII JSON.

    No text in it can begin a second line or a second record.
    """
    try:
        return _encode(record)
    except (TypeError, ValueError, RecursionError):  # a NaN, a key that is no text, a structure that contains itself
        return _encode({str(key): value if _is_plain(value) else _repr(value) for key, value in record.items()})


def journal_line(logger: object, method: str, record: MutableMapping[str, Any]) -> str:
    """Render a record as JSON behind its priority (sd-daemon(3)).

    The journal takes the priority off: `journalctl -p warning` finds it.
    """
    return f"<{_PRIORITIES.get(str(record.get('level')), 5)}>{one_line(logger, method, record)}"


def _is_journal(out: TextIO | None) -> bool:
    """Return whether systemd made the stream, and reads it.

    It says so in `$JOURNAL_STREAM` (systemd.exec(5)).
    """
    if out is None:
        return False
    try:
        file = os.fstat(out.fileno())
    except OSError:  # no file at all: a test's, or closed
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{file.st_dev}:{file.st_ino}"


def _encode(record: Mapping[str, Any]) -> str:
    """Encode as JSON.

    Everything outside ASCII is escaped, since U+2028 and U+0085 end a line for many readers.
    """
    return json.dumps(record, default=_repr, allow_nan=False, separators=(",", ":"))


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, str | int)


def _repr(value: object) -> str:
    """Return the `repr` of a value that JSON does not have."""
    try:
        return repr(value)
    except Exception:  # noqa: BLE001 - a broken or too deep __repr__ must not make a log call fail
        return f"<{type(value).__name__}>"


def printable(_logger: object, _method: str, record: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Escape control characters.

    Nobody's message may move the cursor of the terminal that shows it.
    """
    return {key: _visible(value) if isinstance(value, str) else value for key, value in record.items()}


def printable_traceback(out: TextIO, failure: structlog.typing.ExcInfo) -> None:
    """Write a traceback, escaped like any text.

    The error's message may quote somebody's.
    """
    text = io.StringIO()
    structlog.dev.plain_traceback(text, failure)
    out.write("\n".join(map(_visible, text.getvalue().split("\n"))))


def _visible(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class LibraryHandler(logging.Handler):
    """Passes what libraries log through `logging` to structlog.

    So it has the form of our own records.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Log a library's record under the name of its logger."""
        logger(record.name).log(record.levelno, "library.log", message=record.getMessage(), exc_info=record.exc_info or None)
