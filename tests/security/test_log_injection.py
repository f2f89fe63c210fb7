"""Whatever text an agent sends: one log record is one line, and nothing in it reaches a terminal or a log reader as a control character."""

from __future__ import annotations

import io
import json
import logging
import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nats_taskflow.cli import errors_as_exit_codes
from nats_taskflow.cli.exit_codes import CommandFailed
from nats_taskflow.config import LogConfig
from nats_taskflow.engine.id_mint import IdMint
from nats_taskflow.errors import BusLost, FlowError, InvalidRequest
from nats_taskflow.observe.log import configure_logging, logger
from nats_taskflow.wire.codec import read_command
from nats_taskflow.wire.headers import one_line
from nats_taskflow.wire.inbound import Unusable
from tests.e2e.stage import encoded

HOSTILE = (
    "\x1b[2J\x1b[31mgone\x07",
    '\n{"event":"worker.ready","level":"info"}',
    "\r\n\v\f\x1c\x1d\x1e",
    "\u2028\u2029\x85",
    "\u202egnihtyreve\u202c\u2066\u200f",
    "%n%s%x ${jndi:ldap://evil/x} {{7*7}} <script>'; DROP TABLE flows; --",
    "\x9b31m\x00\x7f\ufeff\ufff9",
    "\udc80\udfff",
)
TEXTS = st.one_of(st.text(alphabet=st.characters()), st.sampled_from(HOSTILE), st.text(alphabet="".join(HOSTILE)))
DANGEROUS = {"Cc", "Cf", "Zl", "Zp", "Cs"}


def records(out: io.StringIO) -> list[str]:
    """Return the lines by the widest notion of a line there is."""
    return out.getvalue().splitlines()


def fail(text: str) -> None:
    """Fail with somebody's text in the message."""
    raise ValueError(text)


def controls(text: str, *, but: str = "\n") -> set[str]:
    """Return the characters that do something instead of showing something."""
    return {character for character in text if unicodedata.category(character) in DANGEROUS and character not in but}


@given(text=TEXTS, other=TEXTS)
@example(text=HOSTILE[1], other=HOSTILE[0])
@settings(deadline=None)
def test_any_text_in_any_field_leaves_a_json_record_one_line_of_ascii(text: str, other: str) -> None:
    out = io.StringIO()
    configure_logging(LogConfig(format="json", level="debug"), out)
    log = logger("consumer").bind(stream=text)
    log.warning("delivery_failed", subject=text, headers={text: [other, {other: text}]}, goal=other, why=InvalidRequest(text, x=other))
    log.error(text, error=text)
    try:
        fail(text)
    except ValueError:
        log.exception("listener_failed", flow_id=other)
    logging.getLogger(other or "x").warning("%s", text)
    assert len(records(out)) == 4
    assert controls(out.getvalue()) == set()
    assert out.getvalue().isascii()
    decoded = [json.loads(line) for line in records(out)]
    assert decoded[0]["subject"] == text
    assert decoded[0]["event"] == "delivery_failed"
    assert decoded[1]["event"] == text


@given(text=TEXTS, other=TEXTS)
@example(text=HOSTILE[0], other=HOSTILE[4])
@settings(deadline=None)
def test_any_text_in_any_field_leaves_a_console_record_one_line_without_control_characters(text: str, other: str) -> None:
    out = io.StringIO()
    configure_logging(LogConfig(format="console", level="debug"), out)
    log = logger("consumer").bind(stream=text)
    log.warning("delivery_failed", subject=text, headers={text: [other, {other: text}]}, goal=other, why=InvalidRequest(text, x=other))
    log.error(text, error=text)
    logging.getLogger("library").warning("%s", text)
    assert len(records(out)) == 3
    assert controls(out.getvalue()) == set()


@given(text=TEXTS)
@example(text=HOSTILE[0])
@settings(deadline=None)
def test_a_traceback_on_a_terminal_has_lines_but_nothing_else_that_moves_the_cursor(text: str) -> None:
    out = io.StringIO()
    configure_logging(LogConfig(format="console"), out)
    try:
        fail(text)
    except ValueError:
        logger("engine").exception("listener_failed", flow_id=text)
    assert controls(out.getvalue()) == set()
    assert "Traceback (most recent call last)" in out.getvalue()


@pytest.mark.parametrize("text", HOSTILE)
def test_a_refusal_at_the_start_is_one_printable_line(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CommandFailed) as failed, errors_as_exit_codes():
        raise BusLost(f"the server said {text.encode('utf-8', 'replace').decode()} and hung up")
    failed.value.show()
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 1
    assert controls(told) == set()


@given(text=TEXTS, verb=st.from_regex(r"\A[A-Za-z0-9_-]{1,63}\Z"))
@settings(deadline=None)
def test_whatever_is_said_of_a_bad_command_can_be_a_header_and_a_log_line(text: str, verb: str) -> None:
    for body in ({text: 1}, {"goal": text}, {"controller_id": text, "goal": text, "flow_id": text}, text):
        for said in ("start", verb):
            verdict = read_command("kate", said, encoded(body), {"Nats-Msg-Id": text}, IdMint(), require_id=True)
            if not isinstance(verdict, Unusable):
                continue
            header = one_line(verdict.error.message)
            assert len(header.splitlines()) <= 1
            assert not any(unicodedata.category(character) in {"Cc", "Zl", "Zp", "Cs"} for character in header)
            assert len(logged(verdict.error)) == 1


def logged(error: FlowError) -> list[str]:
    """Log a refusal as the consumer does, and return the lines."""
    out = io.StringIO()
    configure_logging(LogConfig(format="json"), out)
    logger("consumer").error("delivery_failed", why=error.message, details=error.details)
    return records(out)
