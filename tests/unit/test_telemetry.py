"""One record is one line, whatever is in it; metrics have closed label sets."""

from __future__ import annotations

import ast
import io
import json
import logging
import os
import re
import socket
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest

from nats_taskflow.config import LogConfig
from nats_taskflow.observe.log import configure_logging, logger, one_line
from nats_taskflow.observe.log_limit import ALIKE, SAME, WINDOW, LogRateLimit
from nats_taskflow.observe.metrics import DEAD_LETTER_REASONS, Metrics
from tests.terminal import Terminal

LINE_ENDS = "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"


@given(st.text(alphabet=st.one_of(st.characters(), st.sampled_from(LINE_ENDS))), st.text(alphabet=LINE_ENDS + '"\\{}'))
def test_any_text_in_a_record_leaves_it_one_line_of_valid_json(value: str, other: str) -> None:
    line = one_line(None, "info", {"event": value, "subject": other, other: value})
    assert len(line.splitlines()) == 1
    assert json.loads(line)["event"] == value


class Broken:
    """Something that cannot even be described."""

    def __repr__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    "value", [float("nan"), {(1, 2): 3}, b"\n\xff", {1, 2}, object(), Broken(), [Broken()], {"a": {"b": "worker.ready"}}]
)
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
    configure_logging(LogConfig(format="auto"), out)
    logger("consumer").warning("delivery_failed", reason="undecodable")
    record = json.loads(out.getvalue())
    assert record.pop("timestamp").endswith("Z")
    assert record.pop("instance") == socket.gethostname()
    assert record == {"event": "delivery_failed", "level": "warning", "logger": "consumer", "reason": "undecodable"}


def test_any_structlog_logger_can_be_named() -> None:
    out = io.StringIO()
    configure_logging(LogConfig(format="json"), out)
    structlog.get_logger("relay").bind(outlet="events").info("publish_failed")
    structlog.get_logger().info("worker.ready")
    named, plain = map(json.loads, out.getvalue().splitlines())
    assert (named["logger"], named["outlet"]) == ("relay", "events")
    assert plain["logger"] == "worker", "by the event's name"


def test_a_traceback_stays_within_its_line() -> None:
    out = io.StringIO()
    configure_logging(LogConfig(format="json"), out)
    try:
        int("line one\nline two\u2028line three\n" * 2)
    except ValueError:
        logger("engine").exception("listener_failed")
    assert len(out.getvalue().splitlines()) == 1
    assert "Traceback (most recent call last):\n" in json.loads(out.getvalue())["exception"]


def test_records_below_the_level_are_not_written() -> None:
    out = io.StringIO()
    configure_logging(LogConfig(level="warning", format="json"), out)
    logger("engine").info("wait engine tick")
    assert out.getvalue() == ""


def test_libraries_warnings_come_out_in_the_same_form_and_their_chatter_does_not() -> None:
    out = io.StringIO()
    configure_logging(LogConfig(level="debug", format="json"), out)
    logging.getLogger("aiosqlite").debug("executing with %r", {"secret": "payload"})
    logging.getLogger("nats.aio.client").error("nats: %s", "went\naway")
    assert [json.loads(line)["message"] for line in out.getvalue().splitlines()] == ["nats: went\naway"]


def test_a_terminal_gets_readable_text_that_cannot_move_its_cursor() -> None:
    out = Terminal()
    configure_logging(LogConfig(format="auto"), out)
    logger("consumer").info("delivery_failed", subject="a\x1b[2Jb\nc")
    assert "delivery_failed" in out.getvalue()
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


ROOT = Path(__file__).parents[2]
LEVELS = {"debug", "info", "warning", "error", "exception", "critical", "log"}


def logged_events() -> set[str]:
    """Return every event name that the worker logs somewhere; a name with a hole becomes each that fits it."""
    found: set[str] = set()
    for path in sorted((ROOT / "worker" / "nats_taskflow").rglob("*.py")):
        if path.relative_to(ROOT / "worker" / "nats_taskflow").parts[0] in {"cli", "client", "testing"}:
            continue  # other programs: people's terminals, and libraries that log as their host does
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and (event := event_of(call)) is not None:
                found |= named(event)
    return found


def event_of(call: ast.Call) -> ast.expr | None:
    """Return the event of a call that logs."""
    match call.func:
        case ast.Attribute(attr="log", value=receiver) if "logger(" in ast.unparse(receiver):
            return call.args[1]
        case ast.Attribute(attr=level, value=receiver) if level in LEVELS and re.search(r"log$|logger\(", ast.unparse(receiver)):
            return call.args[0]
        case ast.Name(id="log"):
            return call.args[0]
        case _:
            return None


def named(event: ast.expr) -> set[str]:
    """Return the names that an expression can be."""
    match event:
        case ast.Constant(value=str(name)):
            return {name}
        case ast.JoinedStr(values=[ast.Constant(value=str(prefix)), ast.FormattedValue(value=ast.Name(id=name))]):
            pull = ROOT / "worker" / "nats_taskflow" / "bus" / "nats" / "pull.py"
            kinds = re.findall(r'_report\("(\w+)"', pull.read_text(encoding="utf-8"))
            assert (prefix, name) == ("pull.", "what"), "an event name is made of parts that this test does not know"
            return {prefix + kind for kind in kinds}
        case _:
            raise AssertionError(f"an event that nobody could look for: {ast.unparse(event)}")


def test_the_page_explains_every_event_and_no_other() -> None:
    page = (ROOT / "docs" / "logging.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z_. ]+)` \| (debug|info|warning|error) \| (.*) ?\|$", page, re.MULTILINE)
    assert sorted(name for name, _, _ in rows) == sorted(logged_events())
    assert not [name for name, level, text in rows if level in {"warning", "error"} and not text.strip()]


def lines_of(form: str, log: Any) -> list[str]:
    out = io.StringIO()
    configure_logging(LogConfig(format=form), out)
    log(logger("t"))
    return out.getvalue().splitlines()


def test_the_journal_gets_the_priority_before_the_record() -> None:
    def log(to: Any) -> None:
        to.info("worker.ready")
        to.warning("bus.error")
        to.error("flow_set_aside")

    lines = lines_of("journald", log)
    assert [line[:3] for line in lines] == ["<6>", "<4>", "<3>"]
    assert [json.loads(line[3:])["event"] for line in lines] == ["worker.ready", "bus.error", "flow_set_aside"]


def test_a_stream_that_systemd_made_for_the_journal_is_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for journal, first in ((True, "<"), (False, "{")):
        with (tmp_path / "err").open("w+") as out:
            there = os.fstat(out.fileno())
            monkeypatch.setenv("JOURNAL_STREAM", f"{there.st_dev}:{there.st_ino + (not journal)}")
            configure_logging(LogConfig(format="auto"), out)
            structlog.get_logger("t").info("worker.ready")
            out.seek(0)
            assert out.read(1) == first


def test_a_traceback_names_its_error_and_a_traceparent_is_shown_as_viewers_look_for_it() -> None:
    def log(to: Any) -> None:
        try:
            int("x")
        except ValueError:
            to.exception("request_failed", traceparent=f"00-{'1' * 32}-{'2' * 16}-01")
        to.error("request_failed", traceparent=None, exc_info=KeyError("k"))

    first, second = map(json.loads, lines_of("json", log))
    assert (first["error.type"], first["trace_id"], first["span_id"]) == ("ValueError", "1" * 32, "2" * 16)
    assert second["error.type"] == "KeyError"
    assert not {"trace_id", "traceparent"} & second.keys()


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def passed(sparing: LogRateLimit, **record: Any) -> dict[str, Any] | None:
    try:
        return dict(sparing(None, "", {"level": "warning", **record}))
    except structlog.DropEvent:
        return None


def test_a_storm_is_a_few_lines_and_the_next_says_how_many_were_left_out() -> None:
    clock = Clock()
    sparing = LogRateLimit(clock)
    assert sum(passed(sparing, event="other", why="the same") is not None for _ in range(3)) == 3
    assert sum(passed(sparing, event="e", why="the same") is not None for _ in range(1000)) == SAME
    clock.now += WINDOW
    assert passed(sparing, event="e", why="another") == {"level": "warning", "event": "e", "why": "another", "suppressed": 1000 - SAME}
    assert passed(sparing, event="e", why="the same") == {"level": "warning", "event": "e", "why": "the same"}


def test_another_reason_or_another_flow_is_not_left_out_with_the_storm() -> None:
    sparing = LogRateLimit(Clock())
    for _ in range(2 * SAME):
        passed(sparing, event="e", why="the same", flow_id="f1")
    assert passed(sparing, event="e", why="another", flow_id="f1") is not None
    assert passed(sparing, event="e", why="the same", flow_id="f2") is not None


def test_a_storm_of_reasons_each_worded_anew_is_bounded_too_in_lines_and_in_memory() -> None:
    sparing = LogRateLimit(Clock())
    assert sum(passed(sparing, event="e", why=f"{n} is wrong") is not None for n in range(5000)) == ALIKE
    assert passed(sparing, event="another", why="?") is not None, "another event is another storm"
    assert len(sparing._same) <= ALIKE + 1
    assert sum(passed(sparing, event="e", why=f"{n}", level="info") is not None for n in range(1000)) == 1000, "info is told whole"


def test_a_storm_of_a_library_is_spared_like_our_own() -> None:
    out = io.StringIO()
    configure_logging(LogConfig(format="json"), out)
    for _ in range(100):
        logging.getLogger("opentelemetry.exporter").warning("Failed to export")
    assert len(out.getvalue().splitlines()) == SAME


@pytest.mark.parametrize("name", ["NO_COLOR", "TERM"])
def test_a_terminal_that_wants_no_colours_gets_none(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv(name, "dumb")
    out = Terminal()
    configure_logging(LogConfig(), out)
    logger("test").warning("told", why="because")
    assert "told" in out.getvalue()
    assert "\x1b" not in out.getvalue()


def test_a_terminal_gets_colours_where_nobody_minds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    configure_logging(LogConfig(), out)
    logger("test").warning("told", why="because")
    assert "\x1b" in out.getvalue()


def test_a_record_of_the_start_fits_into_a_line_of_100_columns_on_a_terminal() -> None:
    out = io.StringIO()
    configure_logging(LogConfig(format="console"), out)
    logger("topology").info("topology.stream_limited", stream="TASKFLOW_EVT", max_bytes=8_589_934_592)
    (line,) = out.getvalue().splitlines()
    assert len(line) <= 100
