"""Make stdin, stdout and stderr safe for a command.

They may be closed, full, of a narrow encoding, or read by nobody any more.
"""

from __future__ import annotations

import codecs
import errno
import io
import json
import locale
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn, TextIO

from nats_taskflow.cli.exit_codes import FAILED, IO_ERROR

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_ESCAPES = "taskflow-escapes"


class NotWritten(Exception):
    """Stdout cannot be written.

    No `OSError`: click would handle a broken pipe itself, and leave what is buffered to Python.
    """

    def __init__(self, error: OSError) -> None:
        super().__init__(error.strerror)
        self.reader_gone = error.errno == errno.EPIPE


class _Stdout(io.FileIO):
    """Stdout, which raises `NotWritten` instead of an `OSError` like any other file's."""

    def write(self, data: ReadableBuffer, /) -> int:
        """Write. Raises `NotWritten`."""
        try:
            return super().write(data)
        except OSError as error:
            raise NotWritten(error) from error


class _Stderr(io.FileIO):
    """Stderr, which ignores its own errors: nobody could be told of them.

    The exit code is that of the command.
    """

    def write(self, data: ReadableBuffer, /) -> int:
        """Write, or pretend to have written."""
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def run_and_exit(command: Callable[[], None]) -> NoReturn:
    """Run the command line and exit.

    The exit code is right also where the output could not be written.
    """
    codecs.register_error(_ESCAPES, _escaped)
    sys.stdin = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115  for the whole run
    sys.stdout = _text(_Stdout(1, "w", closefd=False), sys.stdout)
    sys.stderr = _text(_Stderr(2, "w", closefd=False), sys.stderr)
    try:
        try:
            command()
        finally:
            sys.stdout.flush()
    except NotWritten as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # at the exit Python tries to write what is left
        if error.reader_gone:
            sys.exit(FAILED)  # the reader closed the pipe
        sys.stderr.write(f"taskflow: the output cannot be written: {error}\n")
        sys.exit(IO_ERROR)
    sys.exit(0)


def _text(raw: io.FileIO, previous: TextIO | None) -> io.TextIOWrapper:
    """Return a text stream over a file, in the encoding of the previous stream.

    Characters that it does not have are escaped.
    """
    encoding = getattr(previous, "encoding", None) or locale.getpreferredencoding(do_setlocale=False)
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding=encoding, errors=_ESCAPES, line_buffering=raw.fileno() != 1 or raw.isatty())


def _escaped(error: UnicodeError) -> tuple[str, int]:
    r"""Escape characters as JSON does, `\u2713`, so that JSON stays JSON."""
    assert isinstance(error, UnicodeEncodeError)
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end
