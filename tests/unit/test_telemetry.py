"""One record is one line, whatever is in it; metrics have closed label sets."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest

from worker.config import Log
from worker.metrics import DEAD_LETTER_REASONS, Metrics
from worker.telemetry import Said, configure_logging, logger, one_line

LINE_ENDS = "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def logging_restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@given(st.text(alphabet=st.one_of(st.characters(), st.sampled_from(LINE_ENDS))), st.text(alphabet=LINE_ENDS + '"\\{}'))
def test_any_text_in_a_record_leaves_it_one_line_of_valid_json(value: str, other: str) -> None:
    line = one_line(None, "info", {"event": value, "subject": other, other: value})
    assert len(line.splitlines()) == 1
    assert json.loads(line)["event"] == value


class Broken:
    """Something that cannot even be described."""

    def __repr__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize("value", [float("nan"), {(1, 2): 3}, b"\n\xff", {1, 2}, object(), Broken(), [Broken()], {"a": {"b": Said.READY}}])
def test_any_value_in_a_record_leaves_it_one_line_of_valid_json(value: Any) -> None:
    line = one_line(None, "info", {"event": "happened", "value": value})
    assert len(line.splitlines()) == 1
    assert json.loads(line)["event"] == "happened"


def test_a_structure_that_contains_itself_or_goes_too_deep_is_described() -> None:
    loop: list[Any] = []
    loop.append(loop)
    deep: list[Any] = []
    for _ in range(50_000):
        deep = [deep]
    for value in (loop, deep):
        assert json.loads(one_line(None, "info", {"event": "happened", "value": value}))["event"] == "happened"
    while deep:  # taken apart by hand: the interpreter would do it recursively
        deep = deep[0]


def test_a_record_has_time_level_logger_and_its_fields() -> None:
    out = io.StringIO()
    configure_logging(Log(format="auto"), out)
    logger("consumer").warning(Said.DEAD_LETTERED, reason="undecodable")
    record = json.loads(out.getvalue())
    assert record.pop("timestamp").endswith("Z")
    assert record == {"event": "consumer.dead_lettered", "level": "warning", "logger": "consumer", "reason": "undecodable"}


def test_any_structlog_logger_can_be_named() -> None:
    out = io.StringIO()
    configure_logging(Log(format="json"), out)
    structlog.get_logger("relay").bind(outlet="events").info(Said.RELAY_BEHIND)
    structlog.get_logger().info(Said.READY)
    named, plain = map(json.loads, out.getvalue().splitlines())
    assert (named["logger"], named["outlet"]) == ("relay", "events")
    assert "logger" not in plain


def test_a_traceback_stays_within_its_line() -> None:
    out = io.StringIO()
    configure_logging(Log(format="json"), out)
    try:
        int("line one\nline two\u2028line three\n" * 2)
    except ValueError:
        logger("engine").exception(Said.DEFECT)
    assert len(out.getvalue().splitlines()) == 1
    assert "Traceback (most recent call last):\n" in json.loads(out.getvalue())["exception"]


def test_records_below_the_level_are_not_written() -> None:
    out = io.StringIO()
    configure_logging(Log(level="warning", format="json"), out)
    logger("engine").info(Said.TICK)
    assert out.getvalue() == ""


def test_libraries_warnings_come_out_in_the_same_form_and_their_chatter_does_not() -> None:
    out = io.StringIO()
    configure_logging(Log(level="debug", format="json"), out)
    logging.getLogger("aiosqlite").debug("executing with %r", {"secret": "payload"})
    logging.getLogger("nats.aio.client").error("nats: %s", "went\naway")
    assert [json.loads(line)["message"] for line in out.getvalue().splitlines()] == ["nats: went\naway"]


def test_a_terminal_gets_readable_text_that_cannot_move_its_cursor() -> None:
    out = Terminal()
    configure_logging(Log(format="auto"), out)
    logger("consumer").info(Said.DEAD_LETTERED, subject="a\x1b[2Jb\nc")
    assert "consumer.dead_lettered" in out.getvalue()
    assert "\x1b[2J" not in out.getvalue()
    assert len(out.getvalue().splitlines()) == 1


def test_metrics_know_their_labels_beforehand_and_count_strange_ones_as_other() -> None:
    metrics = Metrics()
    metrics.commands["start", "applied"].inc()
    metrics.commands["wait", "topic_not_bound"].inc()
    metrics.commands["rm -rf", "applied"].inc()
    metrics.messages["held"].inc()
    metrics.resumes["event"].inc()
    metrics.dead_letters["a reason nobody foresaw"].inc()
    metrics.flows["waiting"].set(3)
    metrics.timer_lag.observe(0.002)
    text = generate_latest(metrics.registry).decode()
    for sample in (
        'taskflow_commands_total{action="start",outcome="applied"} 1.0',
        'taskflow_commands_total{action="wait",outcome="topic_not_bound"} 1.0',
        'taskflow_commands_total{action="other",outcome="other"} 1.0',
        'taskflow_messages_total{outcome="held"} 1.0',
        'taskflow_resumes_total{cause="event"} 1.0',
        'taskflow_dead_letters_total{reason="other"} 1.0',
        'taskflow_flows{status="waiting"} 3.0',
        'taskflow_timer_lag_seconds_bucket{le="0.005"} 1.0',
        "taskflow_nats_connected 0.0",
        "taskflow_outbox_pending 0.0",
        "taskflow_events_published_total 0.0",
    ):
        assert sample in text


def test_the_first_dead_letter_of_a_reason_is_an_increase() -> None:
    """Prometheus sees none in a series that begins with 1."""
    text = generate_latest(Metrics().registry).decode()
    for reason in DEAD_LETTER_REASONS:
        assert f'taskflow_dead_letters_total{{reason="{reason}"}} 0.0' in text


def test_two_sets_of_metrics_share_nothing() -> None:
    one, other = Metrics(), Metrics()
    one.nats_reconnects.inc()
    assert "taskflow_nats_reconnects_total 0.0" in generate_latest(other.registry).decode()


@pytest.mark.parametrize("name", ["NO_COLOR", "TERM"])
def test_a_terminal_that_wants_no_colours_gets_none(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv(name, "dumb")
    out = Terminal()
    configure_logging(Log(), out)
    logger("test").warning("told", why="because")
    assert "told" in out.getvalue()
    assert "\x1b" not in out.getvalue()


def test_a_terminal_gets_colours_where_nobody_minds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    configure_logging(Log(), out)
    logger("test").warning("told", why="because")
    assert "\x1b" in out.getvalue()
