"""Read and say what a command has to, whatever its streams are: closed, full, of a narrow encoding, or read by somebody who has gone."""

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
    """Stdout does not take what the command says. No `OSError`: at a broken pipe click would end by itself, and leave a rest to Python."""

    def __init__(self, failed: OSError) -> None:
        super().__init__(failed.strerror)
        self.gone = failed.errno == errno.EPIPE


class _Stdout(io.FileIO):
    """Stdout, whose errors are told from those of anything else."""

    def write(self, data: ReadableBuffer, /) -> int:
        """Write. Raises `NotWritten`."""
        try:
            return super().write(data)
        except OSError as failed:
            raise NotWritten(failed) from failed


class _Stderr(io.FileIO):
    """Stderr, where nothing can be said about its own errors: the exit code is that of the command."""

    def write(self, data: ReadableBuffer, /) -> int:
        """Write, or do as if."""
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def run_and_exit(command: Callable[[], None]) -> NoReturn:
    """Run the command line and exit, with the right code also where what it said could not be written."""
    codecs.register_error(_ESCAPES, _escaped)
    sys.stdin = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115  for the whole run
    sys.stdout = _text(_Stdout(1, "w", closefd=False), sys.stdout)
    sys.stderr = _text(_Stderr(2, "w", closefd=False), sys.stderr)
    try:
        try:
            command()
        finally:
            sys.stdout.flush()
    except NotWritten as failed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python tries again at the exit to write what is left
        if failed.gone:
            sys.exit(FAILED)  # whoever read it has seen enough
        sys.stderr.write(f"taskflow: the output cannot be written: {failed}\n")
        sys.exit(IO_ERROR)
    sys.exit(0)


def _text(raw: io.FileIO, was: TextIO | None) -> io.TextIOWrapper:
    """Make the text stream over a file, in the encoding that it had; what that does not have is escaped."""
    encoding = getattr(was, "encoding", None) or locale.getpreferredencoding(do_setlocale=False)
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding=encoding, errors=_ESCAPES, line_buffering=raw.fileno() != 1 or raw.isatty())


def _escaped(error: UnicodeError) -> tuple[str, int]:
    r"""Write characters as JSON does, `\u2713`, so that JSON stays JSON."""
    assert isinstance(error, UnicodeEncodeError)
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end
