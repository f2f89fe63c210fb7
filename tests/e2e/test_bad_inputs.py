"""The bad inputs of RELIABILITY 4, over the wire: each ends as the contract says, changes nothing, and the next good one is handled.

What can be attributed to a command id has a stored outcome; what cannot be decoded or attributed lies in the dead letters as it came.
"""

from __future__ import annotations

import json
import stat
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import pytest
import pytest_asyncio

from tests.e2e import checks
from tests.e2e.stage import DEAD_LETTERS, TOPIC, Agent, Heard, Stage, encoded, in_order, new_id
from tests.eventually import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("bad_inputs"), pytest.mark.timeout(120)]

LIMIT = 262_144
FLOW = "00000000-0000-4000-8000-000000000001"
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

    name: str
    verb: str
    body: bytes
    code: str = ""
    reason: str = ""
    path: str | None = None
    headers: Mapping[str, str] = {}
    with_id: bool = True


def case(name: str, verb: str, body: Any, code: str = "invalid_request", path: str | None = None, **more: Any) -> Case:
    """Write a row whose refusal can be asked for under its command id."""
    return Case(name, verb, body if isinstance(body, bytes) else encoded(body), code, path=path, **more)


def unreadable(name: str, body: bytes, reason: str = "malformed", **more: Any) -> Case:
    """Write a row that nobody can decode: it is buried, whatever its header says."""
    return Case(name, "start", body, reason=reason, **more)


def a_start(**more: Any) -> dict[str, Any]:
    """Return a good start."""
    return {"controller_id": "k", "goal": "g", **more}


def a_wait(**condition: Any) -> dict[str, Any]:
    """Return a command that parks the flow of the table."""
    return {"flow_id": FLOW, "wait_condition": condition}


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
    unreadable("nothing", b""),
    unreadable("blanks", b" \n\t "),
    unreadable("trailing bytes", b"{}{}"),
    unreadable("bad utf-8", b'{"controller_id":"\xff","goal":"g"}'),
    unreadable("overlong utf-8", b'{"controller_id":"\xc0\xaf","goal":"g"}'),
    unreadable("half a surrogate", b'{"controller_id":"\\ud800","goal":"g"}'),
    unreadable("a raw control character", b'{"controller_id":"a\nb","goal":"g"}'),
    unreadable("an array", b"[]"),
    unreadable("a string", b'"start"'),
    unreadable("a number", b"1"),
    unreadable("null", b"null"),
    unreadable("NaN", b'{"controller_id":"k","goal":"g","state":{"a":NaN}}'),
    unreadable("Infinity", b'{"controller_id":"k","goal":"g","state":{"a":-Infinity}}'),
    unreadable("1e400", b'{"controller_id":"k","goal":"g","state":{"a":1e400}}'),
    unreadable("a byte order mark", b"\xef\xbb\xbf{}"),
    unreadable("nesting 33", nested(33), "too_deep"),
    unreadable("nesting 1,000", nested(1_000), "too_deep"),
    unreadable("nesting 100,000", nested(100_000), "too_deep"),
    unreadable("the limit and one", sized(LIMIT + 1), "too_large"),
    unreadable("600 KiB of garbage", b"\x00" * 600_000, "too_large"),
)
REFUSED = (
    case("more than 10,000 keys", "start", {str(n): 0 for n in range(15_000)}, path=""),
    case("a key of 100 KiB", "start", {"k" * 100_000: 1}, path=""),
    case("a key twice", "start", b'{"controller_id":"k","goal":"g","goal":"h"}', path="/goal"),
    case("missing field", "start", {"controller_id": "k"}, path="/goal"),
    case("unknown field", "start", a_start(agent="bob"), path="/agent"),
    case("unknown version", "start", a_start(version=99), path="/version"),
    case("text for a number", "finish", {"flow_id": FLOW, "expected_revision": "1"}, path="/expected_revision"),
    case("1.0 for a whole number", "finish", {"flow_id": FLOW, "expected_revision": 1.5}, path="/expected_revision"),
    case("true for a number", "finish", {"flow_id": FLOW, "expected_revision": True}, path="/expected_revision"),
    case("negative revision", "finish", {"flow_id": FLOW, "expected_revision": -1}, "revision_mismatch"),
    case("revision 2^63", "finish", {"flow_id": FLOW, "expected_revision": 2**63}, "revision_mismatch"),
    case("stale revision", "finish", {"flow_id": FLOW, "expected_revision": 0}, "revision_mismatch"),
    case("future revision", "finish", {"flow_id": FLOW, "expected_revision": 7}, "revision_mismatch"),
    case("NUL in an id", "finish", {"flow_id": FLOW[:-1] + "\0"}, path="/flow_id"),
    case("an id with a newline", "finish", {"flow_id": FLOW + "\n"}, path="/flow_id"),
    case("NUL in a text", "start", a_start(current_step="a\0b"), path="/current_step"),
    case("a session with a newline", "start", a_start(session_id="main\n"), path="/session_id"),
    case("a state that is no object", "start", a_start(state=[1]), path="/state"),
    case("a patch that is no object", "advance", {"flow_id": FLOW, "patch": "x"}, path="/patch"),
    case("unknown verb", "dance", {}, "unsupported_verb"),
    case("a query on cmd", "status", {"flow_id": FLOW}, "unsupported_verb"),
    case("unknown flow", "finish", {"flow_id": "00000000-0000-4000-8000-00000000dead"}, "not_found"),
    case("not from here to there", "run", {"flow_id": FLOW}, "illegal_transition"),
    case("resume without a wait", "resume", {"flow_id": FLOW}, "illegal_transition"),
    case("another session's flow", "finish", {"flow_id": FLOW, "session_id": "other"}, "forbidden"),
    case("a timer in the past", "wait", a_wait(kind="timer", at="2020-01-01T00:00:00Z"), "timer_in_past"),
    case("a timer too far ahead", "wait", a_wait(kind="timer", at=at(days=31)), "horizon_exceeded"),
    case("a timer in the year 9999", "wait", a_wait(kind="timer", at="9999-12-31T23:59:59Z"), "horizon_exceeded"),
    case("a timer without a zone", "wait", a_wait(kind="timer", at="2026-12-01T00:00:00"), path="/wait_condition/at"),
    case("a timer that is no time", "wait", a_wait(kind="timer", at="soon"), path="/wait_condition/at"),
    case("a deadline in the past", "wait", a_wait(**WAITING_ON, deadline="2020-01-01T00:00:00Z"), "timer_in_past"),
    case("a timeout that is no duration", "wait", a_wait(**WAITING_ON, timeout="-5s"), path="/wait_condition/timeout"),
    case("a timeout too far ahead", "wait", a_wait(**WAITING_ON, timeout="31d"), "horizon_exceeded"),
    case("an absurd timeout", "wait", a_wait(**WAITING_ON, timeout="99999999d"), path="/wait_condition/timeout"),
    case("a wait of no kind", "wait", a_wait(kind="mood"), path="/wait_condition/kind"),
    case("an empty correlation id", "wait", a_wait(**{**WAITING_ON, "correlation_id": ""}), path="/wait_condition/correlation_id"),
    case("an over-long one", "wait", a_wait(**{**WAITING_ON, "correlation_id": "c" * 257}), path="/wait_condition/correlation_id"),
    case("one with NUL", "wait", a_wait(**{**WAITING_ON, "correlation_id": "c\0"}), path="/wait_condition/correlation_id"),
    case("one with a newline", "wait", a_wait(**{**WAITING_ON, "correlation_id": "c\n"}), path="/wait_condition/correlation_id"),
    case("a topic nobody binds", "wait", a_wait(**{**WAITING_ON, "topic": "no.such.topic"}), "topic_not_bound"),
    case("a topic that is a pattern", "wait", a_wait(**{**WAITING_ON, "topic": "agent.delegate.*"}), "topic_not_bound"),
    case("another agent's reply topic", "wait", a_wait(**{**WAITING_ON, "topic": "taskflow.reply.bob"}), "forbidden"),
    case("an empty composite", "wait", a_wait(kind="any_of", conditions=[])),
    case("at least nothing", "wait", a_wait(kind="at_least", count=0, conditions=[{"kind": "manual"}])),
    case("the same pair twice", "wait", a_wait(kind="any_of", conditions=[WAITING_ON, WAITING_ON])),
    case("header and body ids differ", "start", a_start(command_id="another"), "id_mismatch"),
)
ANONYMOUS = (
    Case("no command id", "start", encoded(a_start()), reason="invalid_request", with_id=False),
    Case("an empty id", "start", encoded(a_start(command_id="")), reason="invalid_request", with_id=False),
    Case("65 characters", "start", encoded(a_start(command_id="c" * 65)), reason="invalid_request", with_id=False),
    Case("a look-alike", "start", encoded(a_start(command_id="сmd")), reason="invalid_request", with_id=False),
    Case("an id with a newline", "start", encoded(a_start(command_id="c\n")), reason="invalid_request", with_id=False),
    Case("a header that is no id", "start", encoded(a_start()), reason="invalid_request", headers={"Nats-Msg-Id": "a b"}, with_id=False),
    Case("an unknown verb without id", "dance", b"{}", reason="unsupported_verb", with_id=False),
)


async def unchanged(set_: Set) -> None:
    """Check that the table's flow is as it was, and that a good command is handled at once."""
    assert await set_.kate.history(set_.flow) == set_.before
    good = f"good-{uuid4().hex}"
    await set_.kate.cmd("start", a_start(), good)
    assert (await set_.kate.outcome(good, within=2))["ok"]


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


@pytest.mark.parametrize("row", [*UNREADABLE, *REFUSED, *ANONYMOUS], ids=lambda row: row.name)
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
        if row.path is not None:
            assert outcome["error"]["details"]["path"] == row.path, outcome
    if not row.reason:
        await kate.client.flush()
        assert len(set_.dead.messages) == dead, "what has a stored outcome is no dead letter"
    await unchanged(set_)


@pytest.mark.parametrize("row", [*UNREADABLE, *REFUSED], ids=lambda row: row.name)
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
    assert answer.headers is not None
    assert "\n" not in answer.headers["Nats-Service-Error"]
    assert answer.headers["Nats-Service-Error-Code"] in {"400", "403", "404", "409", "413"}
    await unchanged(set_)


async def test_a_command_cut_off_at_any_byte_is_buried_each_time(set_: Set) -> None:
    whole = encoded(a_start(state={"a": [1, "x"], "b": None}))
    cut = [whole[:length] for length in range(len(whole))]
    subject = "taskflow.cmd.kate.start"
    named = [(body, {"Nats-Msg-Id": f"cut-{length}"}) for length, body in enumerate(cut)]
    answers = await in_order([partial(set_.kate.publish, subject, body, headers) for body, headers in named])
    for answer, body in zip(answers, cut, strict=True):
        await buried(set_, answer.seq, subject, body, "malformed")
    await unchanged(set_)


async def test_a_body_of_exactly_the_limit_is_taken(set_: Set) -> None:
    await set_.kate.publish("taskflow.cmd.kate.start", sized(LIMIT), {"Nats-Msg-Id": "at-the-limit"})
    assert (await set_.kate.outcome("at-the-limit"))["ok"]
    assert (await set_.kate.api("start", json.loads(nested(32))))["ok"]


async def test_a_state_cannot_grow_past_its_limit_in_steps(set_: Set) -> None:
    flow = await set_.kate.start()
    answers = [await set_.kate.api("advance", {"flow_id": flow, "patch": {str(n): "x" * 100_000}}) for n in range(3)]
    assert [answer["ok"] for answer in answers] == [True, True, False]
    assert answers[2]["error"]["code"] == "too_large"
    assert (await set_.kate.flow(flow))["revision"] == 3
    assert (await set_.kate.api("advance", {"flow_id": flow, "patch": {"0": ""}}))["ok"], "shrinking is always possible"


async def test_the_same_command_a_hundred_times_is_one_command(set_: Set) -> None:
    flow = await set_.kate.start()
    body = encoded({"flow_id": flow, "patch": {"n": 1}, "command_id": "hundred"})
    await in_order([partial(set_.kate.publish, "taskflow.cmd.kate.advance", body)] * 100)
    assert (await set_.kate.outcome("hundred"))["flow"]["revision"] == 2
    answers = {(await set_.kate.ask("advance", raw=body)).data for _ in range(3)}
    assert answers == {await set_.kate.outcome_bytes("hundred")}
    assert (await set_.kate.flow(flow))["revision"] == 2


async def test_commands_on_an_ended_flow_are_refused_and_change_nothing(set_: Set) -> None:
    flow = await set_.kate.start()
    assert (await set_.kate.api("cancel", {"flow_id": flow}))["ok"]
    before = await set_.kate.history(flow)
    asked: list[tuple[str, dict[str, Any]]] = [(verb, {}) for verb in ("run", "advance", "finish", "resume", "cancel")]
    asked += [
        ("fail", {"reason": "r"}),
        ("wait", {"wait_condition": {"kind": "manual"}}),
        ("observe", {"run_id": "r", "task": "t", "status": "running"}),
    ]
    for verb, more in asked:
        assert (await set_.kate.api(verb, {"flow_id": flow, **more}))["error"]["code"] == "already_terminal", verb
    assert await set_.kate.history(flow) == before


async def test_odd_texts_are_stored_as_they_are_and_logged_in_one_line(set_: Set) -> None:
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
async def test_odd_headers_do_not_disturb_a_good_command(set_: Set, headers: dict[str, str]) -> None:
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
async def test_header_blocks_that_no_client_would_write_do_not_stop_the_worker(set_: Set, block: bytes) -> None:
    body = encoded(a_start(command_id=f"raw-{uuid4().hex}"))
    size = len(block)
    line = b"HPUB taskflow.cmd.kate.start %d %d\r\n" % (size, size + len(body))
    await set_.kate.client._send_command(line + block + body + b"\r\n")
    await set_.kate.client.flush()
    await unchanged(set_)


@pytest.mark.parametrize("agent", ["a" * 64, "ka$te", "käte"], ids=["64 characters", "a dollar", "an umlaut"])
async def test_a_subject_that_names_no_agent_is_buried(set_: Set, agent: str) -> None:
    subject, body = f"taskflow.cmd.{agent}.start", encoded(a_start())
    stored = await set_.kate.publish(subject, body, {"Nats-Msg-Id": f"stray-{uuid4().hex}"})
    await buried(set_, stored.seq, subject, body, "invalid_request")
    await unchanged(set_)


REPLIES: tuple[tuple[str, str, Any, dict[str, str], str], ...] = (
    ("no correlation id", TOPIC, {"payload": 1}, {}, "no_correlation"),
    ("no JSON", TOPIC, b"ok", {}, "no_correlation"),
    ("nothing", TOPIC, b"", {}, "no_correlation"),
    ("a list", TOPIC, [1], {}, "no_correlation"),
    ("a correlation id that is no text", TOPIC, {"correlation_id": 7, "payload": 1}, {}, "invalid_request"),
    ("an empty one", TOPIC, {"correlation_id": "", "payload": 1}, {}, "invalid_request"),
    ("an over-long one", TOPIC, {"correlation_id": "c" * 257, "payload": 1}, {}, "invalid_request"),
    ("one with NUL", TOPIC, {"correlation_id": "c\0", "payload": 1}, {}, "invalid_request"),
    ("one with a newline", TOPIC, {"correlation_id": "c\n", "payload": 1}, {}, "invalid_request"),
    ("an event id with a newline", TOPIC, {"correlation_id": "c", "payload": 1, "event_id": "e\n"}, {}, "invalid_request"),
    ("too deep", TOPIC, nested(33), {"Correlation-Id": "c"}, "too_deep"),
    ("too large", TOPIC, b'{"correlation_id":"c","payload":"%b"}' % (b"x" * LIMIT), {}, "too_large"),
    ("too large, no JSON", "taskflow.reply.kate.c", b"x" * (LIMIT + 1), {}, "too_large"),
    ("a resume message without flow", "taskflow.resume", {"topic": TOPIC, "correlation_id": "c"}, {}, "invalid_request"),
    ("one whose flow is no id", "taskflow.resume", {"flow_id": "7", "topic": TOPIC, "correlation_id": "c"}, {}, "invalid_request"),
    ("one without a topic", "taskflow.resume", {"flow_id": FLOW, "correlation_id": "c"}, {}, "invalid_request"),
    ("one that is no object", "taskflow.resume", [FLOW], {}, "malformed"),
    ("one that is no JSON", "taskflow.resume", b"resume", {}, "malformed"),
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
    assert (await set_.kate.until(flow, "running", within=2))["state"]["resume_event"] == "good"
    await unchanged(set_)


async def test_a_reply_for_another_pair_is_held_and_resumes_nobody(set_: Set) -> None:
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


async def test_two_endings_at_once_have_one_winner(set_: Set) -> None:
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
async def test_a_bad_setting_is_refused_in_one_line_that_names_it(
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


async def test_a_hard_link_and_readable_credentials_are_refused(tmp_path: Path) -> None:
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


async def test_a_taken_http_port_is_refused_by_name(set_: Set, tmp_path: Path) -> None:
    taken = set_.stage.ready["http"].removeprefix("http://")
    ended = await set_.stage.refused(TASKFLOW_STORE_PATH=str(tmp_path / "own.db"), TASKFLOW_HTTP_BIND=taken)
    assert (ended.code, "http.bind" in ended.stderr) == (78, True), ended.stderr
    await eventually(lambda: set_.stage.running)
