"""A line that cannot be written is lost and counted, and the next one that can be says so."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import sys
from pathlib import Path

import pytest
import structlog

from nats_taskflow.config import LogConfig
from nats_taskflow.observe.line_writer import LineWriter
from nats_taskflow.observe.log import configure_logging

linux = pytest.mark.skipif(sys.platform != "linux", reason="sizes of pipes")


def test_lines_lost_are_counted_also_those_from_before_somebody_counts() -> None:
    counted: list[int] = []
    lines = LineWriter(None)
    lines.write("one\n")
    lines.count(counted.append)
    lines.write("two\n")
    assert (lines.lost, counted) == (2, [1, 1])


def test_a_stream_of_python_that_is_closed_takes_nothing() -> None:
    out = io.StringIO()
    lines = LineWriter(out)
    out.close()
    lines.write("one\n")
    assert lines.lost == 1


def test_a_pipe_whose_reader_is_gone_takes_nothing() -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as out:
        lines = LineWriter(out)
        os.close(reader)
        lines.write("one\n")
        assert lines.lost == 1


@linux
@pytest.mark.timeout(10)
def test_a_pipe_that_nobody_reads_takes_what_fits_and_goes_on_once_it_is_read() -> None:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    with os.fdopen(writer, "w") as out, os.fdopen(reader, "rb", buffering=0) as read:
        lines = LineWriter(out)
        lines.write("x" * 4095 + "\n")
        for _ in range(1000):  # at the patience of the first one each it would take a minute
            lines.write("lost\n")
        assert lines.lost == 1000
        assert read.read(4096) == b"x" * 4095 + b"\n"
        lines.write("y" * 10_000 + "\n")
        assert lines.lost == 1001, "longer than the pipe"
        assert read.read(4096) == b"y" * 4096
        lines.write("next\n")
        assert read.read(4096) == b"\nnext\n", "not in the middle of another line"
        assert (lines.lost, lines.unreported) == (1001, 0)


def test_a_disk_that_is_full_in_the_middle_of_a_line_leaves_the_next_one_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, room = os.write, 4
    with (tmp_path / "log").open("w", encoding="utf-8") as out:
        lines = LineWriter(out)

        def full(descriptor: int, data: bytes) -> int:
            nonlocal room
            if room == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            written = real(descriptor, data[:room])
            room -= written
            return written

        monkeypatch.setattr(os, "write", full)
        lines.write("a long line\n")
        lines.write("lost too\n")
        room = 100
        lines.write("whole\n")
    assert (tmp_path / "log").read_text(encoding="utf-8") == "a lo\nwhole\n"
    assert lines.lost == 2


def test_the_next_record_that_gets_through_says_how_many_did_not() -> None:
    out = io.StringIO()
    lines = configure_logging(LogConfig(format="json"), out)
    log = structlog.get_logger("relay")
    lines.out = None
    for _ in range(3):
        log.info("worker.ready")
    lines.out = out
    log.info("worker.ready")
    log.info("worker.ready")
    first, second = map(json.loads, out.getvalue().splitlines())
    assert first["lost"] == 3
    assert "lost" not in second


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_what_an_encoding_does_not_have_is_escaped(encoding: str, tmp_path: Path) -> None:
    with (tmp_path / "log").open("w", encoding=encoding) as out:
        LineWriter(out).write("✓ \udcff\n")
    assert (tmp_path / "log").read_text(encoding=encoding) == "\\u2713 \\udcff\n"
