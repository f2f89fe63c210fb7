"""The bad inputs of RELIABILITY 4, over the wire: each ends as the contract says, changes nothing, and the next good one is handled.

What can be attributed to a command id has a stored outcome; what cannot be decoded or attributed lies in the dead letters as it came.
A test's id has the row of the catalogue. Where CONTRACT 3 has a code, it is that, not the catalogue's token.

Rows elsewhere: 53 (one agent's flood) tests/unit/test_queueing.py and bench/flood.py · 52 also tests/service/test_quotas.py ·
58 (forged inboxes) tests/contract/test_jetstream.py, test_send.py · 59, 60 (poison, own nak delays; there is no max_deliver to exceed)
tests/service/test_line.py and tests/e2e/test_kills.py · 63 (damaged rows) tests/service/test_rules_of_damage.py · 65 (HTTP)
tests/unit/test_health.py · 10, 55 as log lines also tests/unit/test_telemetry.py · every row's decoder: tests/fuzz.
"""

from __future__ import annotations

import asyncio
import json
import stat
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.request import urlopen
from uuid import uuid4

import msgspec
import pytest
import pytest_asyncio

from nats_taskflow.bus.nats.server import EmbeddedServer
from tests.e2e import checks
from tests.e2e.stage import DEAD_LETTERS, TOPIC, Agent, Heard, Stage, encoded, in_order, new_id
from tests.eventually import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("bad_inputs"), pytest.mark.timeout(120)]

LIMIT = 262_144
FLOW = "00000000-0000-4000-8000-000000000001"
ENVELOPED = b'{"id":%b,"timestamp":"t","topic":"x","source":"y","payload":{"correlation_id":"c","payload":1}}'
ODD = (
    "__proto__",
    "<script>alert(1)</script>",
    "{{7*7}}",
    "%n%s",
    "${jndi:ldap://x}",
    "'; DROP TABLE flows; --",
    "\x1b[2J\u2028\u202e\u0085",
)
WAITING_ON: dict[str, Any] = {"kind": "external_event", "topic": TOPIC, "correlation_id": "bad"}


class Set(msgspec.Struct):
    """What the cases share: one worker, an agent, one flow that nothing may change, and the dead letters as they come."""

    stage: Stage
    kate: Agent
    flow: str
    before: list[Any]
    dead: Heard


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def set_(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Set]:
    """One stage for the whole table: that it still works after every row is half of what is tested."""
    async with Stage(tmp_path_factory.mktemp("bad")) as stage:
        kate = await stage.agent()
        flow = await kate.start(flow_id=FLOW)
        async with kate.listening("taskflow.dlq.*") as dead:
            yield Set(stage, kate, flow, await kate.history(flow), dead)


class Case(msgspec.Struct, frozen=True):
    """A message and what becomes of it: `code` of a stored outcome, or `reason` of a dead letter (or both)."""

    row: int
    name: str
    verb: str
    body: bytes
    code: str = ""
    reason: str = ""
    path: str | None = None
    headers: Mapping[str, str] = {}
    with_id: bool = True

    @property
    def id(self) -> str:
        """What the test is called: the row of RELIABILITY 4, and what is special about this one."""
        return f"row{self.row:02}-{self.name.replace(' ', '-')}"


def case(row: int, name: str, verb: str, body: Any, code: str = "invalid_request", path: str | None = None, **more: Any) -> Case:
    """Write a row whose refusal can be asked for under its command id."""
    return Case(row, name, verb, body if isinstance(body, bytes) else encoded(body), code, path=path, **more)


def unreadable(row: int, name: str, body: bytes, reason: str = "malformed", **more: Any) -> Case:
    """Write a row that nobody can decode: it is buried, whatever its header says."""
    return Case(row, name, "start", body, reason=reason, **more)


def a_start(**more: Any) -> dict[str, Any]:
    """Return a good start."""
    return {"controller_id": "k", "goal": "g", **more}


def a_wait(**condition: Any) -> dict[str, Any]:
    """Return a command that parks the flow of the table."""
    return {"flow_id": FLOW, "wait_condition": condition}


def a_delegate(**more: Any) -> dict[str, Any]:
    """Return a command that delegates from the flow of the table."""
    return {"flow_id": FLOW, "to": "svc.add", **more}


def conditions_nested(depth: int) -> dict[str, Any]:
    """Return a composite this many levels deep."""
    inner: dict[str, Any] = {"kind": "manual"}
    for _ in range(depth - 1):
        inner = {"kind": "any_of", "conditions": [inner]}
    return inner


def nested(depth: int) -> bytes:
    """Return a start whose state nests this deep, the body itself being level 1."""
    inner = depth - 2
    return b'{"controller_id":"k","goal":"g","state":{"a":' + b"[" * inner + b"]" * inner + b"}}"


def at(**ahead: float) -> str:
    """Return a time as seen from now."""
    return (datetime.now(UTC) + timedelta(**ahead)).isoformat()


def sized(size: int) -> bytes:
    """Return a good start of exactly this many bytes. Its blanks weigh; its state does not."""
    body = encoded(a_start())
    return body[:-1] + b" " * (size - len(body)) + b"}"


UNREADABLE = (
    unreadable(1, "nothing", b""),
    unreadable(2, "blanks", b" \n\t "),
    unreadable(4, "trailing bytes", b"{}{}"),
    unreadable(6, "bad utf-8", b'{"controller_id":"\xff","goal":"g"}'),
    unreadable(6, "overlong utf-8", b'{"controller_id":"\xc0\xaf","goal":"g"}'),
    unreadable(6, "half a surrogate", b'{"controller_id":"\\ud800","goal":"g"}'),
    unreadable(8, "a raw control character", b'{"controller_id":"a\nb","goal":"g"}'),
    unreadable(11, "an array", b"[]"),
    unreadable(11, "a string", b'"start"'),
    unreadable(11, "a number", b"1"),
    unreadable(11, "null", b"null"),
    unreadable(17, "NaN", b'{"controller_id":"k","goal":"g","state":{"a":NaN}}'),
    unreadable(17, "Infinity", b'{"controller_id":"k","goal":"g","state":{"a":-Infinity}}'),
    unreadable(17, "1e400", b'{"controller_id":"k","goal":"g","state":{"a":1e400}}', path="/state"),
    unreadable(6, "two byte order marks", b"\xef\xbb\xbf\xef\xbb\xbf{}"),
    unreadable(21, "nesting 33", nested(33), "too_deep"),
    unreadable(21, "nesting 1,000", nested(1_000), "too_deep"),
    unreadable(21, "nesting 100,000", nested(100_000), "too_deep"),
    unreadable(24, "the limit and one", sized(LIMIT + 1), "too_large"),
    unreadable(17, "an envelope with 1e400", ENVELOPED % b"1e400"),
    unreadable(6, "an envelope that is no text", ENVELOPED % b'"\xff"'),
    unreadable(4, "a good command and a NUL", b'{"controller_id":"k","goal":"g"}\0'),
    unreadable(21, "objects nested 33 deep", b'{"controller_id":"k","goal":"g","state":' + b'{"a":' * 32 + b"1" + b"}" * 33, "too_deep"),
    unreadable(24, "300 KB of garbage", b"\x00" * 300_000, "too_large"),
)
REFUSED = (
    case(23, "more than 10,000 keys", "start", {str(n): 0 for n in range(15_000)}, path=""),
    case(27, "a key of 100 KiB", "start", {"k" * 100_000: 1}, path=""),
    case(27, "a key twice", "start", b'{"controller_id":"k","goal":"g","goal":"h"}', path="/goal"),
    case(13, "missing field", "start", {"controller_id": "k"}, path="/goal"),
    case(36, "unknown field", "start", a_start(agent="bob"), path="/agent"),
    case(28, "unknown version", "start", a_start(version=99), path="/version"),
    case(14, "text for a number", "finish", {"flow_id": FLOW, "expected_revision": "1"}, path="/expected_revision"),
    case(14, "1.0 for a whole number", "finish", {"flow_id": FLOW, "expected_revision": 1.5}, path="/expected_revision"),
    case(14, "true for a number", "finish", {"flow_id": FLOW, "expected_revision": True}, path="/expected_revision"),
    case(43, "negative revision", "finish", {"flow_id": FLOW, "expected_revision": -1}, "revision_mismatch"),
    case(43, "revision 2^63", "finish", {"flow_id": FLOW, "expected_revision": 2**63}, "revision_mismatch"),
    case(43, "stale revision", "finish", {"flow_id": FLOW, "expected_revision": 0}, "revision_mismatch"),
    case(43, "future revision", "finish", {"flow_id": FLOW, "expected_revision": 7}, "revision_mismatch"),
    case(8, "NUL in an id", "finish", {"flow_id": FLOW[:-1] + "\0"}, path="/flow_id"),
    case(9, "an id with a newline", "finish", {"flow_id": FLOW + "\n"}, path="/flow_id"),
    case(8, "NUL in a text", "start", a_start(current_step="a\0b"), path="/current_step"),
    case(9, "a session with a newline", "start", a_start(session_id="main\n"), path="/session_id"),
    case(14, "a state that is no object", "start", a_start(state=[1]), path="/state"),
    case(14, "a patch that is no object", "advance", {"flow_id": FLOW, "patch": "x"}, path="/patch"),
    case(28, "unknown verb", "dance", {}, "unsupported_verb"),
    case(28, "a query on cmd", "status", {"flow_id": FLOW}, "unsupported_verb"),
    case(40, "unknown flow", "finish", {"flow_id": "00000000-0000-4000-8000-00000000dead"}, "not_found"),
    case(42, "not from here to there", "run", {"flow_id": FLOW}, "illegal_transition"),
    case(42, "resume without a wait", "resume", {"flow_id": FLOW}, "illegal_transition"),
    case(36, "another session's flow", "finish", {"flow_id": FLOW, "session_id": "other"}, "forbidden"),
    case(18, "a timer in the past", "wait", a_wait(kind="timer", at="2020-01-01T00:00:00Z"), "timer_in_past"),
    case(19, "a timer too far ahead", "wait", a_wait(kind="timer", at=at(days=401)), "horizon_exceeded"),
    case(19, "a timer in the year 9999", "wait", a_wait(kind="timer", at="9999-12-31T23:59:59Z"), "horizon_exceeded"),
    case(18, "a timer without a zone", "wait", a_wait(kind="timer", at="2026-12-01T00:00:00"), path="/wait_condition/at"),
    case(18, "a timer that is no time", "wait", a_wait(kind="timer", at="soon"), path="/wait_condition/at"),
    case(18, "a deadline in the past", "wait", a_wait(**WAITING_ON, deadline="2020-01-01T00:00:00Z"), "timer_in_past"),
    case(18, "a timeout that is no duration", "wait", a_wait(**WAITING_ON, timeout="-5s"), path="/wait_condition/timeout"),
    case(19, "a timeout too far ahead", "wait", a_wait(**WAITING_ON, timeout="401d"), "horizon_exceeded"),
    case(18, "an absurd timeout", "wait", a_wait(**WAITING_ON, timeout="99999999d"), path="/wait_condition/timeout"),
    case(28, "a wait of no kind", "wait", a_wait(kind="mood"), path="/wait_condition/kind"),
    case(8, "an empty correlation id", "wait", a_wait(**{**WAITING_ON, "correlation_id": ""}), path="/wait_condition/correlation_id"),
    case(8, "an over-long one", "wait", a_wait(**{**WAITING_ON, "correlation_id": "c" * 257}), path="/wait_condition/correlation_id"),
    case(8, "one with NUL", "wait", a_wait(**{**WAITING_ON, "correlation_id": "c\0"}), path="/wait_condition/correlation_id"),
    case(9, "one with a newline", "wait", a_wait(**{**WAITING_ON, "correlation_id": "c\n"}), path="/wait_condition/correlation_id"),
    case(49, "a topic nobody binds", "wait", a_wait(**{**WAITING_ON, "topic": "no.such.topic"}), "topic_not_bound"),
    case(49, "a topic that is a pattern", "wait", a_wait(**{**WAITING_ON, "topic": "agent.delegate.*"}), "topic_not_bound"),
    case(50, "another agent's reply topic", "wait", a_wait(**{**WAITING_ON, "topic": "taskflow.reply.bob"}), "forbidden"),
    case(13, "an empty composite", "wait", a_wait(kind="any_of", conditions=[]), path="/wait_condition/conditions"),
    case(18, "at least nothing", "wait", a_wait(kind="at_least", count=0, conditions=[{"kind": "manual"}]), path="/wait_condition/count"),
    case(51, "the same pair twice", "wait", a_wait(kind="any_of", conditions=[WAITING_ON, WAITING_ON]), path="/wait_condition/conditions"),
    case(8, "NUL in a topic", "wait", a_wait(**{**WAITING_ON, "topic": "a\0"}), path="/wait_condition/topic"),
    case(8, "NUL in a reason", "fail", {"flow_id": FLOW, "reason": "a\0"}, path="/reason"),
    case(14, "a number for a text", "fail", {"flow_id": FLOW, "reason": 1}, path="/reason"),
    case(14, "null for an object", "start", a_start(state=None), path="/state"),
    case(21, "a wait five levels deep", "wait", a_wait(**conditions_nested(5)), path="/wait_condition"),
    case(23, "a wait of 65 leaves", "wait", a_wait(kind="all_of", conditions=[{"kind": "manual"}] * 65), path="/wait_condition"),
    case(24, "an accept of 17 KiB", "wait", a_wait(**WAITING_ON, accept={"const": "x" * 17_000}), path="/wait_condition/accept"),
    case(28, "an accept that refers", "wait", a_wait(**WAITING_ON, accept={"$ref": "http://x"}), path="/wait_condition/accept"),
    case(29, "an older version", "start", a_start(version=0), path="/version"),
    case(35, "33 headers for a delegate", "delegate", a_delegate(headers={f"X-{n}": "x" for n in range(33)}), "too_large", path="/headers"),
    case(35, "8 KiB of headers for a delegate", "delegate", a_delegate(headers={"X": "x" * 8_200}), "too_large", path="/headers"),
    case(35, "CRLF in a header for a delegate", "delegate", a_delegate(headers={"X": "a\r\nY: b"}), path="/headers"),
    case(35, "a header of ours for a delegate", "delegate", a_delegate(headers={"Nats-Msg-Id": "x"}), path="/headers"),
    case(36, "an owner in the body", "start", a_start(owner_session_key="agent:bob:session:main"), path="/owner_session_key"),
    case(36, "a delegate that is the worker itself", "delegate", a_delegate(to="taskflow.cmd.bob.cancel"), path="/to"),
    case(36, "a delegate that is the broker", "delegate", a_delegate(to="$JS.API.STREAM.PURGE.TASKFLOW_IN"), path="/to"),
    case(32, "header and body ids differ", "start", a_start(command_id="another"), "id_mismatch"),
)
ANONYMOUS = (
    Case(30, "no command id", "start", encoded(a_start()), reason="invalid_request", with_id=False),
    Case(30, "an empty id", "start", encoded(a_start(command_id="")), reason="invalid_request", with_id=False),
    Case(30, "65 characters", "start", encoded(a_start(command_id="c" * 65)), reason="invalid_request", with_id=False),
    Case(30, "a look-alike", "start", encoded(a_start(command_id="сmd")), reason="invalid_request", with_id=False),
    Case(9, "an id with a newline", "start", encoded(a_start(command_id="c\n")), reason="invalid_request", with_id=False),
    Case(
        30, "a header that is no id", "start", encoded(a_start()), reason="invalid_request", headers={"Nats-Msg-Id": "a b"}, with_id=False
    ),
    Case(28, "an unknown verb without id", "dance", b"{}", reason="unsupported_verb", with_id=False),
)


def names_the_field(row: Case, error: dict[str, Any]) -> None:
    """Check that the refusal names the field, as a pointer (CONTRACT 3)."""
    if row.path is not None:
        assert error["details"]["path"] == row.path, error
    elif error["code"] == "invalid_request":
        assert error["details"]["path"] == "", "a body that cannot be read is refused as a whole"


async def unchanged(set_: Set) -> None:
    """Check that the table's flow is as it was, and that a good command is handled at once."""
    assert await set_.kate.history(set_.flow) == set_.before
    good = f"good-{uuid4().hex}"
    await set_.kate.cmd("start", a_start(), good)
    assert (await set_.kate.outcome(good, within=10))["ok"]


async def buried(set_: Set, seq: int, subject: str, body: bytes, reason: str) -> None:
    """Check that a message lies in the dead letters as it came, once, with where it came from."""

    def found() -> list[Any]:
        return [one for one in set_.dead.messages if (one.headers or {}).get("Taskflow-Origin-Sequence") == str(seq)]

    await set_.dead.until(found, within=5)
    (letter,) = found()
    headers = letter.headers
    assert letter.subject == f"taskflow.dlq.{reason}"
    assert letter.data == body
    assert (headers["Taskflow-Origin-Subject"], headers["Taskflow-Origin-Stream"]) == (subject, "TASKFLOW_IN")
    assert (headers["Taskflow-Reason"], headers["Taskflow-Sha256"]) == (reason, sha256(body).hexdigest())
    assert headers["Taskflow-Message"]


@pytest.mark.parametrize("row", [*UNREADABLE, *REFUSED, *ANONYMOUS], ids=lambda row: row.id)
async def test_a_bad_command_ends_as_the_contract_says(set_: Set, row: Case) -> None:
    kate = set_.kate
    name = f"bad-{uuid4().hex}"
    subject = f"taskflow.cmd.kate.{row.verb}"
    dead = len(set_.dead.messages)
    headers = {**row.headers, **({"Nats-Msg-Id": name} if row.with_id else {})}
    stored = await kate.publish(subject, row.body, headers)
    if row.reason:
        await buried(set_, stored.seq, subject, row.body, row.reason)
    if row.with_id:
        outcome = await kate.outcome(name, within=5)
        assert outcome["ok"] is False
        if row.code:
            assert outcome["error"]["code"] == row.code, outcome
        names_the_field(row, outcome["error"])
    if not row.reason:
        await kate.client.flush()
        assert len(set_.dead.messages) == dead, "what has a stored outcome is no dead letter"
    await unchanged(set_)


@pytest.mark.parametrize("row", [*UNREADABLE, *REFUSED], ids=lambda row: row.id)
async def test_a_bad_request_is_answered_and_changes_nothing(set_: Set, row: Case) -> None:
    if row.code == "id_mismatch":
        answer = await set_.kate.ask(row.verb, raw=row.body, headers={"Nats-Msg-Id": "one"})
    elif (row.verb, row.code) == ("status", "unsupported_verb"):
        answer = await set_.kate.ask("dance", raw=row.body)
    else:
        answer = await set_.kate.ask(row.verb, raw=row.body)
    said = json.loads(answer.data)
    wanted = row.code or {"malformed": "invalid_request"}.get(row.reason, row.reason)
    assert (said["ok"], said["error"]["code"]) == (False, wanted)
    names_the_field(row, said["error"])
    assert answer.headers is not None
    assert "\n" not in answer.headers["Nats-Service-Error"]
    assert answer.headers["Nats-Service-Error-Code"] in {"400", "403", "404", "409", "413"}
    await unchanged(set_)


async def test_row03_a_command_cut_off_at_any_byte_is_buried_each_time(set_: Set) -> None:
    whole = encoded(a_start(state={"a": [1, "x"], "b": None}))
    cut = [whole[:length] for length in range(len(whole))]
    subject = "taskflow.cmd.kate.start"
    named = [(body, {"Nats-Msg-Id": f"cut-{length}"}) for length, body in enumerate(cut)]
    answers = await in_order([partial(set_.kate.publish, subject, body, headers) for body, headers in named])
    for answer, body in zip(answers, cut, strict=True):
        await buried(set_, answer.seq, subject, body, "malformed")
    await unchanged(set_)


async def test_row24_a_body_of_exactly_the_limit_is_taken(set_: Set) -> None:
    await set_.kate.publish("taskflow.cmd.kate.start", sized(LIMIT), {"Nats-Msg-Id": "at-the-limit"})
    assert (await set_.kate.outcome("at-the-limit"))["ok"]
    assert (await set_.kate.api("start", json.loads(nested(32))))["ok"]


async def test_row25_a_state_cannot_grow_past_its_limit_in_steps(set_: Set) -> None:
    flow = await set_.kate.start()
    answers = [await set_.kate.api("advance", {"flow_id": flow, "patch": {str(n): "x" * 100_000}}) for n in range(3)]
    assert [answer["ok"] for answer in answers] == [True, True, False]
    assert answers[2]["error"]["code"] == "too_large"
    assert (await set_.kate.flow(flow))["revision"] == 3
    assert (await set_.kate.api("advance", {"flow_id": flow, "patch": {"0": ""}}))["ok"], "shrinking is always possible"


async def test_row31_the_same_command_a_hundred_times_is_one_command(set_: Set) -> None:
    flow = await set_.kate.start()
    body = encoded({"flow_id": flow, "patch": {"n": 1}, "command_id": "hundred"})
    await in_order([partial(set_.kate.publish, "taskflow.cmd.kate.advance", body)] * 100)
    assert (await set_.kate.outcome("hundred"))["flow"]["revision"] == 2
    answers = {(await set_.kate.ask("advance", raw=body)).data for _ in range(3)}
    assert answers == {await set_.kate.outcome_bytes("hundred")}
    assert (await set_.kate.flow(flow))["revision"] == 2


async def test_row41_commands_on_an_ended_flow_are_refused_and_change_nothing(set_: Set) -> None:
    flow = await set_.kate.start()
    assert (await set_.kate.api("cancel", {"flow_id": flow}))["ok"]
    before = await set_.kate.history(flow)
    asked: list[tuple[str, dict[str, Any]]] = [(verb, {}) for verb in ("run", "advance", "finish", "resume", "cancel")]
    asked += [("fail", {"reason": "r"}), ("wait", {"wait_condition": {"kind": "manual"}})]
    for verb, more in asked:
        assert (await set_.kate.api(verb, {"flow_id": flow, **more}))["error"]["code"] == "already_terminal", verb
    assert await set_.kate.history(flow) == before


async def test_row10_55_odd_texts_are_stored_as_they_are_and_logged_in_one_line(set_: Set) -> None:
    for text in ODD:
        answer = await set_.kate.api("start", a_start(goal=text, current_step=text, requester_origin=text, state={text: text}))
        assert answer["ok"], answer
        shown = await set_.kate.flow(answer["flow"]["id"])
        assert (shown["goal"], shown["current_step"], shown["requester_origin"], shown["state"]) == (text, text, text, {text: text})
        refused = await set_.kate.api("start", a_start(controller_id=text + "\0"))
        assert refused["error"]["code"] == "invalid_request"
    await unchanged(set_)


@pytest.mark.parametrize(
    "headers",
    [
        {"X": "x" * 60_000},
        {f"X-{n}": "x" for n in range(1000)},
        {"traceparent": "00-nonsense"},
        {"Taskflow-Reply-To": "taskflow.cmd.kate.cancel"},
        {"Status": "409", "Description": "Consumer Deleted"},
        {"Nats-Expected-Stream": "TASKFLOW_IN"},
        {"X-Unicode": "wért \u2028"},
    ],
    ids=["64 KiB", "1,000 of them", "a bad traceparent", "a reply subject that is no inbox", "a status", "an expectation", "unicode"],
)
async def test_row35_odd_headers_do_not_disturb_a_good_command(set_: Set, headers: dict[str, str]) -> None:
    name = f"odd-{uuid4().hex}"
    await set_.kate.publish("taskflow.cmd.kate.start", encoded(a_start()), {**headers, "Nats-Msg-Id": name})
    assert (await set_.kate.outcome(name, within=5))["ok"]


@pytest.mark.parametrize(
    "block",
    [
        b"NATS/1.0 409 Consumer Deleted\r\n\r\n",
        b"NATS/1.0\r\nBad\xff\xfe: \xff\r\n\r\n",
        b"NATS/1.0\r\nno colon\r\n\r\n",
        b"nonsense\r\n\r\n",
    ],
    ids=["a status line", "bytes that are no text", "no colon", "no header block"],
)
async def test_row35_header_blocks_that_no_client_would_write_do_not_stop_the_worker(set_: Set, block: bytes) -> None:
    body = encoded(a_start(command_id=f"raw-{uuid4().hex}"))
    size = len(block)
    line = b"HPUB taskflow.cmd.kate.start %d %d\r\n" % (size, size + len(body))
    await set_.kate.client._send_command(line + block + body + b"\r\n")
    await set_.kate.client.flush()
    await unchanged(set_)


@pytest.mark.parametrize("agent", ["a" * 64, "ka$te", "käte"], ids=["64 characters", "a dollar", "an umlaut"])
async def test_row36_a_subject_that_names_no_agent_is_buried(set_: Set, agent: str) -> None:
    subject, body = f"taskflow.cmd.{agent}.start", encoded(a_start())
    stored = await set_.kate.publish(subject, body, {"Nats-Msg-Id": f"stray-{uuid4().hex}"})
    await buried(set_, stored.seq, subject, body, "invalid_request")
    await unchanged(set_)


REPLIES: tuple[tuple[str, str, Any, dict[str, str], str], ...] = (
    ("row13-no-correlation-id", TOPIC, {"payload": 1}, {}, "no_correlation"),
    ("row01-no-JSON", TOPIC, b"ok", {}, "no_correlation"),
    ("row01-nothing", TOPIC, b"", {}, "no_correlation"),
    ("row11-a-list", TOPIC, [1], {}, "no_correlation"),
    ("row14-a-correlation-id-that-is-no-text", TOPIC, {"correlation_id": 7, "payload": 1}, {}, "invalid_request"),
    ("row08-an-empty-one", TOPIC, {"correlation_id": "", "payload": 1}, {}, "invalid_request"),
    ("row08-an-over-long-one", TOPIC, {"correlation_id": "c" * 257, "payload": 1}, {}, "invalid_request"),
    ("row08-one-with-NUL", TOPIC, {"correlation_id": "c\0", "payload": 1}, {}, "invalid_request"),
    ("row09-one-with-a-newline", TOPIC, {"correlation_id": "c\n", "payload": 1}, {}, "invalid_request"),
    ("row09-an-event-id-with-a-newline", TOPIC, {"correlation_id": "c", "payload": 1, "event_id": "e\n"}, {}, "invalid_request"),
    ("row21-too-deep", TOPIC, nested(33), {"Correlation-Id": "c"}, "too_deep"),
    ("row24-too-large", TOPIC, b'{"correlation_id":"c","payload":"%b"}' % (b"x" * LIMIT), {}, "too_large"),
    ("row24-too-large,-no-JSON", "taskflow.reply.kate.c", b"x" * (LIMIT + 1), {}, "too_large"),
    ("row24-two-thousand-headers", TOPIC, {"payload": 1}, {"Correlation-Id": "c", **{f"H-{n}": "" for n in range(2000)}}, "too_large"),
    ("row13-a-resume-message-without-flow", "taskflow.resume", {"topic": TOPIC, "correlation_id": "c"}, {}, "invalid_request"),
    ("row14-one-whose-flow-is-no-id", "taskflow.resume", {"flow_id": "7", "topic": TOPIC, "correlation_id": "c"}, {}, "invalid_request"),
    ("row13-one-without-a-topic", "taskflow.resume", {"flow_id": FLOW, "correlation_id": "c"}, {}, "invalid_request"),
    ("row11-one-that-is-no-object", "taskflow.resume", [FLOW], {}, "malformed"),
    ("row21-a-resume-too-deep", "taskflow.resume", nested(33), {}, "too_deep"),
    ("row21-a-resume-far-too-deep", "taskflow.resume", nested(100_000), {}, "too_deep"),
    ("row21-a-built-in-reply-too-deep", "taskflow.reply.kate.c", nested(33), {}, "too_deep"),
    ("row24-a-resume-too-large", "taskflow.resume", sized(LIMIT + 1), {}, "too_large"),
    ("row23-a-reply-of-too-many-keys", TOPIC, {str(n): 0 for n in range(15_000)}, {"Correlation-Id": "c"}, "invalid_request"),
    ("row27-a-reply-with-a-key-too-long", TOPIC, {"k" * 100_000: 1}, {"Correlation-Id": "c"}, "invalid_request"),
    ("row17-a-resume-with-1e400", "taskflow.resume", b'{"flow_id":1e400}', {}, "malformed"),
    ("row17-an-envelope-with-1e400", TOPIC, ENVELOPED % b"1e400", {}, "malformed"),
    ("row06-an-envelope-that-is-no-text", TOPIC, ENVELOPED % b'"\xed\xa0\x80"', {}, "no_correlation"),
    ("row08-a-correlation-header-with-NUL", TOPIC, {"payload": 1}, {"Correlation-Id": "c\0"}, "invalid_request"),
    ("row01-one-that-is-no-JSON", "taskflow.resume", b"resume", {}, "malformed"),
)


@pytest.mark.parametrize("subject, body, headers, reason", [row[1:] for row in REPLIES], ids=[row[0] for row in REPLIES])
async def test_a_bad_reply_is_buried_and_the_next_good_one_resumes(
    set_: Set, subject: str, body: Any, headers: dict[str, str], reason: str
) -> None:
    raw = body if isinstance(body, bytes) else encoded(body)
    corr = new_id()
    flow = await set_.kate.parked(corr)
    stored = await set_.kate.publish(subject, raw, headers)
    await buried(set_, stored.seq, subject, raw, reason)
    assert (await set_.kate.flow(flow))["status"] == "waiting"
    await set_.kate.reply(TOPIC, corr, "good")
    assert (await set_.kate.until(flow, "running", within=10))["state"]["resume_event"] == "good"
    await unchanged(set_)


async def test_row49_a_reply_for_another_pair_is_held_and_resumes_nobody(set_: Set) -> None:
    corr = new_id()
    flow = await set_.kate.parked(corr)
    await set_.kate.reply(TOPIC, corr.upper(), "another case")
    await set_.kate.reply(TOPIC, corr + " ", "a blank more")
    await set_.kate.publish(f"taskflow.reply.kate.{corr}", b'"right id, wrong topic"')
    await set_.kate.publish(f"taskflow.reply.bob.{corr}", b'"another agent"')
    await unchanged(set_)
    assert (await set_.kate.flow(flow))["status"] == "waiting"
    await set_.kate.reply(TOPIC, corr, "good")
    await set_.kate.until(flow, "running")


async def test_row44_two_endings_at_once_have_one_winner(set_: Set) -> None:
    for number in range(10):
        corr = f"race-{number}"
        flow = await set_.kate.parked(corr)
        ends = await in_order(
            [
                partial(set_.kate.api, "cancel", {"flow_id": flow}),
                partial(set_.kate.reply, TOPIC, corr, 1),
                partial(set_.kate.api, "resume", {"flow_id": flow}),
            ]
        )
        assert ends[0]["ok"]
        assert (await set_.kate.kinds(flow)).count("resumed") <= 1
        assert (await set_.kate.flow(flow))["status"] == "cancelled"


QUERIES: tuple[tuple[int, str, str, Any, str, str | None], ...] = (
    (1, "not JSON", "status", b"{", "invalid_request", ""),
    (11, "a list", "waits", b"[]", "invalid_request", ""),
    (13, "no flow", "status", {}, "invalid_request", "/flow_id"),
    (14, "text for a limit", "list_mine", {"limit": "1"}, "invalid_request", "/limit"),
    (14, "no such status", "list_mine", {"status": "lost"}, "invalid_request", "/status"),
    (18, "a negative limit", "list_mine", {"limit": -1}, "invalid_request", "/limit"),
    (18, "a limit of 1001", "history", {"flow_id": FLOW, "limit": 1001}, "invalid_request", "/limit"),
    (18, "a limit of 10^30", "list_mine", b'{"limit":1000000000000000000000000000000}', "invalid_request", "/limit"),
    (21, "too deep", "status", nested(33), "too_deep", None),
    (21, "far too deep", "status", nested(100_000), "too_deep", None),
    (24, "too large", "status", sized(LIMIT + 1), "too_large", None),
    (27, "a long cursor", "list_mine", {"cursor": "c" * 1025}, "invalid_request", "/cursor"),
    (27, "a cursor of our own making", "list_mine", {"cursor": "\0'; DROP"}, "invalid_request", "/cursor"),
    (30, "no command id", "outcome", {"command_id": ""}, "invalid_request", "/command_id"),
    (36, "another agent's flow", "status", {"flow_id": FLOW, "session_id": "other"}, "forbidden", None),
    (40, "an unknown flow", "history", {"flow_id": "00000000-0000-4000-8000-00000000dead"}, "not_found", None),
)


@pytest.mark.parametrize(
    "verb, body, code, path", [row[2:] for row in QUERIES], ids=[f"row{row[0]:02}-{row[1].replace(' ', '-')}" for row in QUERIES]
)
async def test_a_bad_query_is_refused_by_name(set_: Set, verb: str, body: Any, code: str, path: str | None) -> None:
    said = json.loads((await set_.kate.ask(verb, raw=body if isinstance(body, bytes) else encoded(body))).data)
    assert (said["ok"], said["error"]["code"]) == (False, code)
    if path is not None:
        assert said["error"]["details"]["path"] == path, said
    await unchanged(set_)


@pytest.mark.parametrize("door", ["cmd", "api"], ids=["row32-cmd", "row32-api"])
async def test_the_same_id_with_another_payload_is_a_conflict_that_shows(set_: Set, door: str) -> None:
    name, kate = f"twice-{uuid4().hex}", set_.kate
    await kate.cmd("start", a_start(goal="first"), name)
    first = await kate.outcome_bytes(name)
    if door == "api":
        assert (await kate.api("start", a_start(goal="second"), name))["error"]["code"] == "conflict"
    else:
        body = encoded(a_start(goal="second", command_id=name))
        # The stream itself knows the header's id: the body's reaches the worker a second time.
        stored = await kate.publish("taskflow.cmd.kate.start", body)
        await buried(set_, stored.seq, "taskflow.cmd.kate.start", body, "conflict")
    assert await kate.outcome_bytes(name) == first
    await unchanged(set_)


async def test_row45_47_a_reply_before_its_wait_is_held_and_counts_once(set_: Set) -> None:
    corr = new_id()
    for _ in range(3):
        await set_.kate.publish(TOPIC, encoded({"correlation_id": corr, "payload": 1, "event_id": corr}))
    other = encoded({"correlation_id": corr, "payload": 2, "event_id": corr})
    stored = await set_.kate.publish(TOPIC, other)
    await buried(set_, stored.seq, TOPIC, other, "conflict")
    flow = await set_.kate.parked(corr)
    assert (await set_.kate.flow(flow))["state"]["resume_event"] == 1
    await set_.kate.park(flow, corr)
    assert (await set_.kate.flow(flow))["status"] == "waiting", "a repeat is not a second reply"
    await unchanged(set_)


async def test_row50_a_reply_that_names_another_flow_resumes_nobody(set_: Set) -> None:
    corr = new_id()
    flow = await set_.kate.parked(corr)
    body = encoded({"flow_id": FLOW, "topic": TOPIC, "correlation_id": corr, "payload": 1})
    stored = await set_.kate.publish("taskflow.resume", body)
    await buried(set_, stored.seq, "taskflow.resume", body, "flow_mismatch")
    assert (await set_.kate.flow(flow))["status"] == "waiting"
    await unchanged(set_)


@pytest.mark.parametrize("door", ["cmd", "api"], ids=["row51-cmd", "row51-api"])
async def test_a_second_wait_for_the_same_pair_is_refused(set_: Set, door: str) -> None:
    corr, kate = new_id(), set_.kate
    first, second = await kate.parked(corr), await kate.start()
    asked = {"flow_id": second, "wait_condition": {**WAITING_ON, "correlation_id": corr}}
    name = f"second-{uuid4().hex}"
    if door == "cmd":
        await kate.cmd("wait", asked, name)
        said = await kate.outcome(name)
    else:
        said = await kate.api("wait", asked, name)
    assert said["error"]["code"] == "wait_conflict"
    assert [(await kate.flow(flow))["status"] for flow in (first, second)] == ["waiting", "running"]
    await unchanged(set_)


@pytest.mark.parametrize(
    "headers",
    [{"X": "x" * 60_000}, {f"X-{n}": "x" for n in range(1000)}, {"Correlation-Id-X": "a b"}],
    ids=["row35-64-KiB", "row35-1,000-of-them", "row35-a-likeness"],
)
async def test_odd_headers_do_not_disturb_a_good_request_or_reply(set_: Set, headers: dict[str, str]) -> None:
    answer = await set_.kate.ask("start", a_start(), headers=headers)
    assert json.loads(answer.data)["ok"]
    corr = new_id()
    flow = await set_.kate.parked(corr)
    await set_.kate.publish(TOPIC, encoded({"correlation_id": corr, "payload": 1}), headers)
    await set_.kate.until(flow, "running")
    bad = await set_.kate.publish(TOPIC, b"no correlation", headers)
    await buried(set_, bad.seq, TOPIC, b"no correlation", "no_correlation")


async def test_row56_whatever_comes_in_the_metrics_stay_within_200_series(set_: Set) -> None:
    for number in range(20):
        await set_.kate.publish(f"taskflow.cmd.agent-{number}.verb-{number}", b"{}", {"Nats-Msg-Id": f"series-{number}"})
        await set_.kate.publish(f"taskflow.reply.agent-{number}.c", b"{}")
    await unchanged(set_)
    address = set_.stage.ready["http"] + "/metrics"
    page = await asyncio.to_thread(lambda: urlopen(address, timeout=10).read().decode())  # noqa: S310  our own address
    series = [line for line in page.splitlines() if line and not line.startswith("#")]
    assert "taskflow_dead_letters" in page
    assert len(series) <= 200
    assert not any("agent-1" in line or "verb-1" in line for line in series)


async def test_after_all_of_it_everything_adds_up(set_: Set) -> None:
    found = await set_.stage.stream(DEAD_LETTERS, set_.kate)
    assert len({sent.headers["Nats-Msg-Id"] for sent in found}) == len(found)
    assert await checks.violations(set_.stage, set_.kate) == []
    await set_.stage.start()


STARTS: tuple[tuple[str, dict[str, str], str, int, str], ...] = (
    ("an unknown key", {}, '[store]\npaht = "x"\n', 78, "store.paht"),
    ("an unknown section", {}, "[sotre]\n", 78, "sotre"),
    ("no TOML", {}, "store = [", 78, "not valid TOML"),
    ("a wrong type", {}, "[engine]\nmax_batch = true\n", 78, "engine.max_batch"),
    ("a negative number", {"TASKFLOW_ENGINE_MAX_BATCH": "-1"}, "", 78, "engine.max_batch"),
    ("no duration", {"TASKFLOW_ENGINE_TICK_INTERVAL": "soon"}, "", 78, "engine.tick_interval"),
    ("a misspelt variable", {"TASKFLOW_STORE_PAHT": "x"}, "", 78, "TASKFLOW_STORE_PATH"),
    ("a folder that is not there", {"TASKFLOW_STORE_PATH": "/no/such/folder/flows.db"}, "", 78, "store.path"),
    ("a folder for a file", {"TASKFLOW_STORE_PATH": "/"}, "", 78, "store.path"),
    ("a bad address", {"TASKFLOW_HTTP_BIND": "nowhere"}, "", 78, "http.bind"),
    ("a topic that is none", {"TASKFLOW_REPLY_TOPICS": "a..b"}, "", 78, "reply_topics"),
    ("a topic of our own", {"TASKFLOW_REPLY_TOPICS": "taskflow.evt.>"}, "", 78, "reply_topics"),
    ("a bad prefix", {"TASKFLOW_SUBJECTS_PREFIX": "a b"}, "", 78, "subjects.prefix"),
    ("a reply binding that cannot work", {}, '[[replies]]\nsubject = "a.b"\ncorrelation = "subject"\n', 78, "correlation"),
    ("credentials that are not there", {"TASKFLOW_NATS_CREDS": "/no/such.creds"}, "", 78, "nats.creds"),
)


@pytest.mark.parametrize("changes, file, code, named", [row[1:] for row in STARTS], ids=[row[0] for row in STARTS])
async def test_row61_a_bad_setting_is_refused_in_one_line_that_names_it(
    tmp_path: Path, changes: dict[str, str], file: str, code: int, named: str
) -> None:
    stage = Stage(tmp_path, settings={"TASKFLOW_NATS_URL": "nats://127.0.0.1:9"})
    (tmp_path / "taskflow.toml").write_text(file, encoding="utf-8")
    ended = await stage.refused(**changes)
    assert ended.code == code, ended.stderr
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("taskflow: ")]
    assert named in line
    assert "Traceback" not in ended.stderr
    assert not stage.path.exists()


async def test_row61_a_hard_link_and_readable_credentials_are_refused(tmp_path: Path) -> None:
    stage = Stage(tmp_path, settings={"TASKFLOW_NATS_URL": "nats://127.0.0.1:9"})
    other = tmp_path / "other.db"
    other.write_bytes(b"")
    stage.path.hardlink_to(other)
    ended = await stage.refused()
    assert (ended.code, "hard links" in ended.stderr) == (78, True), ended.stderr
    creds = tmp_path / "worker.creds"
    creds.write_text("secret", encoding="utf-8")
    creds.chmod(stat.S_IRUSR | stat.S_IWUSR | stat.S_IROTH)
    ended = await stage.refused(TASKFLOW_NATS_CREDS=str(creds))
    assert (ended.code, "nats.creds" in ended.stderr) == (78, True), ended.stderr


async def test_row61_a_taken_http_port_is_refused_by_name(set_: Set, tmp_path: Path) -> None:
    taken = set_.stage.ready["http"].removeprefix("http://")
    server = EmbeddedServer(tmp_path / "nats")
    await server.start()
    try:
        ended = await set_.stage.refused(
            TASKFLOW_NATS_URL=server.url, TASKFLOW_STORE_PATH=str(tmp_path / "own.db"), TASKFLOW_HTTP_BIND=taken
        )
    finally:
        await server.stop()
    assert (ended.code, "http.bind" in ended.stderr) == (78, True), ended.stderr
    await eventually(lambda: set_.stage.running)


async def test_an_agent_that_stores_beyond_its_quotas_is_refused_at_both_doors_and_its_neighbour_is_not(tmp_path: Path) -> None:
    """RELIABILITY 9, "a neighbour stores": also after a kill."""
    async with Stage(tmp_path, settings={"TASKFLOW_QUOTAS_OPEN_FLOWS": "5", "TASKFLOW_QUOTAS_STATE_BYTES": "1MiB"}) as stage:
        mallory, bob = await stage.agent("mallory"), await stage.agent("bob")
        big = {"controller_id": "c", "goal": "g", "state": {"text": "x" * 240_000}}
        flows = [await mallory.start(state=big["state"]) for _ in range(4)]
        refused = await mallory.api("start", big)
        assert (refused["error"]["code"], refused["error"]["details"]["quota"]) == ("quota_exceeded", "state_bytes")
        await mallory.start()
        await stage.kill()
        await stage.start()
        refused = await mallory.api("start", {"controller_id": "c", "goal": "g"})
        assert (refused["error"]["code"], refused["error"]["details"]["quota"]) == ("quota_exceeded", "open_flows")
        await mallory.cmd("start", {"controller_id": "c", "goal": "g"}, "sixth")
        assert (await mallory.outcome("sixth"))["error"]["code"] == "quota_exceeded"
        await bob.start(state=big["state"])
        assert (await mallory.api("finish", {"flow_id": flows[0]}))["ok"]
        await mallory.start()
        assert await checks.violations(stage, bob) == []


async def test_row52_a_flood_of_replies_that_nobody_waits_for_stays_within_its_quota(tmp_path: Path) -> None:
    """Other tenants keep theirs, every reply has its outcome, and what made room is in the dead letters."""
    settings = {"TASKFLOW_ENGINE_HELD_REPLIES_MAX_PER_OWNER": "50", "TASKFLOW_ENGINE_HELD_REPLIES_MAX": "60"}
    async with Stage(tmp_path, settings=settings) as stage:
        kate, bob = await stage.agent("kate"), await stage.agent("bob")
        await bob.publish("taskflow.reply.bob.early", b'{"n":1}')
        await in_order([partial(kate.reply, TOPIC, f"flood-{n}", n, f"flood-{n}") for n in range(2_000)])
        letters = await stage.dead(kate, 1_950)
        assert {letter.subject for letter in letters} == {"taskflow.dlq.expired"}
        assert len(letters) == 1_950
        flow = await bob.start()
        said = await bob.park(flow, "early", topic="taskflow.reply.bob")
        assert said["flow"]["state"]["resume_event"] == {"n": 1}
        late = await kate.parked("flood-1999")
        assert (await kate.flow(late))["status"] == "running", "the youngest are held"
        assert await checks.violations(stage, kate) == []
        with stage.database() as database:
            assert database.execute("SELECT count(*) FROM held").fetchone() == (49,)
