"""Reading requests: every verb, command ids, and the catalogue of bad inputs (CONTRACT 2, RELIABILITY 4)."""

from __future__ import annotations

import json
import re
from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nats_taskflow.errors import FlowError, IdMismatch, InvalidRequest, UnsupportedVerb
from nats_taskflow.flow import stimuli as flow
from nats_taskflow.flow.lifecycle import FlowStatus, FlowStepStatus
from nats_taskflow.wire import requests
from nats_taskflow.wire.codec import Query, read_command, read_query, refuse_stray
from nats_taskflow.wire.headers import UNREAD
from nats_taskflow.wire.inbound import REASONS, Inbound, Unusable
from nats_taskflow.wire.requests import COMMANDS, QUERIES
from tests.golden import golden

FLOW = "01931c5e-7b2a-7c3d-9e4f-0a1b2c3d4e5f"
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ID = {"Nats-Msg-Id": "c-1"}
START: dict[str, Any] = {"controller_id": "kate/inbox-triage", "goal": "sort the mail"}
OF_FLOW = {"flow_id": FLOW}
GOOD: dict[str, dict[str, Any]] = {
    "start": START,
    "run": OF_FLOW,
    "advance": OF_FLOW | {"patch": {"a": 1}},
    "wait": OF_FLOW | {"wait_condition": {"kind": "manual"}},
    "delegate": OF_FLOW | {"to": "svc.billing"},
    "resume": OF_FLOW,
    "finish": OF_FLOW,
    "fail": OF_FLOW | {"reason": "no answer"},
    "cancel": OF_FLOW,
    "observe": OF_FLOW | {"run_id": "r", "task": "t", "status": "running"},
}
CALLER = flow.Caller(actor="agent:kate", owner="agent:kate:session:main", cause="c-1")


class Counting:
    """A mint whose makings are told apart and can be predicted."""

    def __init__(self) -> None:
        self.made = count(1)

    def flow_id(self) -> str:
        return f"flow-{next(self.made)}"

    def nonce(self) -> str:
        return f"nonce-{next(self.made)}"

    def command_id(self) -> str:
        return f"command-{next(self.made)}"


def read(verb: str, body: Any, headers: dict[str, str] | None = None, *, require_id: bool = True) -> Inbound | Unusable:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return read_command("kate", verb, raw, ID if headers is None else headers, Counting(), require_id=require_id)


def taken(verb: str, body: Any, headers: dict[str, str] | None = None, *, require_id: bool = True) -> Inbound:
    verdict = read(verb, body, headers, require_id=require_id)
    assert isinstance(verdict, Inbound), verdict
    return verdict


def refused(verb: str, body: Any, headers: dict[str, str] | None = None) -> Unusable:
    verdict = read(verb, body, headers)
    assert isinstance(verdict, Unusable), verdict
    assert verdict.reason in REASONS
    return verdict


def test_every_handled_verb_has_an_example_here() -> None:
    assert GOOD.keys() == COMMANDS.keys()


@pytest.mark.parametrize(
    "verb, fields, command",
    [
        (
            "start",
            START,
            flow.StartFlow(
                flow_id="flow-1",
                caller=CALLER,
                owner_session_key="agent:kate:session:main",
                requester_origin="agent:kate",
                **START,
            ),
        ),
        (
            "start",
            START
            | {"flow_id": FLOW.upper(), "current_step": "one", "state": {"a": 1}, "idempotency_key": "k", "hold": True}
            | {"requester_origin": "telegram:7"},
            flow.StartFlow(
                flow_id=FLOW,
                minted=False,
                caller=CALLER,
                owner_session_key="agent:kate:session:main",
                requester_origin="telegram:7",
                current_step="one",
                state_json={"a": 1},
                idempotency_key="k",
                hold=True,
                **START,
            ),
        ),
        ("run", {}, flow.RunFlow(flow_id=FLOW, caller=CALLER)),
        ("run", {"expected_revision": 0}, flow.RunFlow(flow_id=FLOW, caller=CALLER, expected_revision=0)),
        ("advance", {}, flow.AdvanceFlow(flow_id=FLOW, caller=CALLER)),
        ("advance", {"patch": None, "current_step": None}, flow.AdvanceFlow(flow_id=FLOW, caller=CALLER)),
        (
            "advance",
            {"patch": {"a": [1]}, "current_step": "two"},
            flow.AdvanceFlow(flow_id=FLOW, caller=CALLER, patch={"a": [1]}, next_step="two"),
        ),
        (
            "wait",
            {"wait_condition": {"kind": "manual"}},
            flow.ParkFlow(flow_id=FLOW, caller=CALLER, condition={"kind": "manual"}, nonce="nonce-1"),
        ),
        ("resume", {"patch": {"a": 1}, "reason": "r"}, flow.ResumeFlow(flow_id=FLOW, caller=CALLER, patch={"a": 1}, reason="r")),
        ("finish", {"final_state": {"a": 1}}, flow.FinishFlow(flow_id=FLOW, caller=CALLER, final_state={"a": 1})),
        ("fail", {"reason": "r"}, flow.FailFlow(flow_id=FLOW, caller=CALLER, reason="r")),
        ("cancel", {}, flow.CancelFlow(flow_id=FLOW, caller=CALLER)),
        ("cancel", {"mode": "now", "reason": "r"}, flow.CancelFlow(flow_id=FLOW, caller=CALLER, reason="r")),
        ("cancel", {"mode": "request"}, flow.RequestCancel(flow_id=FLOW, caller=CALLER)),
        (
            "observe",
            {"run_id": "r", "task": "t", "status": "succeeded", "child_session_key": "c", "result": [1]},
            flow.ObserveStep(
                flow_id=FLOW,
                caller=CALLER,
                step_id="flow-1",
                run_id="r",
                task="t",
                status=FlowStepStatus.SUCCEEDED,
                child_session_key="c",
                result_json=[1],
            ),
        ),
    ],
)
def test_a_request_becomes_the_command_it_asks_for(verb: str, fields: dict[str, Any], command: flow.Stimulus) -> None:
    body = fields if verb == "start" else OF_FLOW | fields
    assert taken(verb, body).stimulus == command
    assert taken(verb, body).verb == verb


def test_the_session_makes_the_owner_and_the_trace_is_carried_on() -> None:
    command = taken("run", OF_FLOW | {"session_id": "s:1"}, ID | {"Traceparent": TRACE}).stimulus
    assert isinstance(command, flow.RunFlow)
    assert command.caller == flow.Caller(actor="agent:kate", owner="agent:kate:session:s:1", cause="c-1", trace=TRACE)


def test_a_request_in_the_reference_envelope_is_the_same_request() -> None:
    envelope = {"id": "e", "timestamp": "t", "topic": "x", "source": "y", "session_id": "other", "payload": OF_FLOW}
    assert taken("run", envelope) == taken("run", OF_FLOW)


@pytest.mark.parametrize("value", [b"1e400", b'"\\ud800"', b'"\xff"', b"[" * 40 + b"]" * 40])
@pytest.mark.parametrize("name", ["id", "timestamp", "session_id"])
def test_an_envelope_with_a_part_that_cannot_be_read_is_refused_like_any_such_body(name: str, value: bytes) -> None:
    """Found by tests/fuzz: an id of 1e400 was raised as a defect, and the message tried again for minutes."""
    parts = {
        "id": b"1",
        "timestamp": b"1",
        "topic": b"1",
        "source": b"1",
        "session_id": b"1",
        "payload": json.dumps(OF_FLOW).encode(),
        name: value,
    }
    body = b"{" + b",".join(b'"%b":%b' % (key.encode(), part) for key, part in parts.items()) + b"}"
    assert refused("run", body).reason == ("too_deep" if value.startswith(b"[") else "malformed")


@pytest.mark.parametrize("wrapped", [False, True])
def test_any_request_may_begin_with_a_byte_order_mark(wrapped: bool) -> None:
    mark, body = b"\xef\xbb\xbf", {"flow_id": FLOW}
    spelled = json.dumps({"id": "e", "timestamp": "t", "topic": "t", "source": "s", "payload": body} if wrapped else body).encode()
    assert taken("run", mark + spelled) == taken("run", spelled)
    assert read_query("kate", "status", mark + json.dumps({"flow_id": FLOW}).encode()) == read_query(
        "kate", "status", json.dumps({"flow_id": FLOW}).encode()
    )
    assert refused("run", mark, {"Nats-Msg-Id": "c"}).reason == "malformed"


def test_the_envelope_id_is_no_command_id() -> None:
    envelope = {"id": "e", "timestamp": "t", "topic": "x", "source": "y", "payload": OF_FLOW}
    assert refused("run", envelope, {}).error.details["path"] == "/command_id"


def test_a_message_with_more_headers_than_are_read_is_refused_under_its_id() -> None:
    verdict = refused("start", START, {**ID, UNREAD: "900000"})
    assert (verdict.reason, verdict.error.details["path"]) == ("too_large", "/headers")
    assert verdict.identity is not None


def test_header_id_and_body_id_are_the_same_identity() -> None:
    by_header = taken("start", START)
    by_body = taken("start", START | {"command_id": "c-1"}, {})
    by_both = taken("start", START | {"command_id": "c-1"}, {"nats-msg-id": "c-1"})
    assert by_header.identity == by_body.identity == by_both.identity
    assert (by_header.identity.scope, by_header.identity.key) == ("cmd:kate", "c-1")
    assert len(by_header.identity.digest) == 16


@given(st.permutations(list((START | {"state": {"b": 1, "a": 2}}).items())), st.sampled_from([None, 2]))
def test_the_spelling_of_the_json_does_not_matter_to_the_identity(fields: list[tuple[str, Any]], indent: int | None) -> None:
    canonical = taken("start", START | {"state": {"a": 2, "b": 1}, "session_id": "main"})
    assert taken("start", json.dumps(dict(fields), indent=indent).encode()).identity == canonical.identity


def test_another_body_or_another_verb_under_the_same_id_is_another_digest() -> None:
    digests = {taken(verb, GOOD[verb]).identity.digest for verb in GOOD}
    digests.add(taken("start", START | {"goal": "other"}).identity.digest)
    digests.add(taken("run", OF_FLOW | {"expected_revision": 1}).identity.digest)
    digests.add(taken("run", OF_FLOW | {"session_id": "other"}).identity.digest)
    assert len(digests) == len(GOOD) + 3


def test_minted_ids_do_not_make_a_repeat_another_command() -> None:
    mint = Counting()
    first, again = (read_command("kate", "start", json.dumps(START).encode(), ID, mint, require_id=True) for _ in range(2))
    assert isinstance(first, Inbound)
    assert isinstance(again, Inbound)
    assert first.stimulus != again.stimulus
    assert first.identity == again.identity


def test_without_an_id_a_request_gets_one_and_a_durable_command_is_refused() -> None:
    assert taken("run", OF_FLOW, {}, require_id=False).identity.key == "command-1"
    bad = refused("run", OF_FLOW, {})
    assert (bad.reason, bad.error.details["path"], bad.identity) == ("invalid_request", "/command_id", None)


@pytest.mark.parametrize("given_id", ["", "a" * 65, "a b", "a.b", "id\n", "іd", "a\x00", "*", "ｃ"])
def test_a_bad_command_id_is_refused_wherever_it_stands(given_id: str) -> None:
    for bad in (refused("run", OF_FLOW, {"Nats-Msg-Id": given_id}), refused("run", OF_FLOW | {"command_id": given_id}, {})):
        assert (bad.reason, bad.identity) == ("invalid_request", None)
        assert bad.error.details["path"] == "/command_id"


def test_header_and_body_ids_that_differ_are_refused_under_the_headers() -> None:
    bad = refused("run", OF_FLOW | {"command_id": "c-2"})
    assert isinstance(bad.error, IdMismatch)
    assert bad.reason == "id_mismatch"
    assert bad.identity is not None
    assert bad.identity.key == "c-1"


def test_the_header_may_name_the_agent_before_the_id() -> None:
    """The broker drops a repeated header of anybody, so that two agents with one id need different headers."""
    plain = taken("run", {"flow_id": FLOW}, {"Nats-Msg-Id": "c-1"})
    assert taken("run", {"flow_id": FLOW}, {"Nats-Msg-Id": "kate/c-1"}) == plain
    assert taken("run", {"flow_id": FLOW, "command_id": "c-1"}, {"Nats-Msg-Id": "kate/c-1"}) == plain
    assert (
        read_command("kate", "run", json.dumps({"flow_id": FLOW}).encode(), {"Nats-Msg-Id": "kate/c-1"}, Counting(), require_id=False)
        == plain
    )
    differs = refused("run", {"flow_id": FLOW, "command_id": "c-2"}, {"Nats-Msg-Id": "kate/c-1"})
    assert differs.reason == "id_mismatch"
    assert differs.identity is not None
    assert differs.identity.key == "c-1"


@pytest.mark.parametrize(
    "given_id, reason",
    [
        ("mallory/c-1", "id_mismatch"),
        ("kat/c-1", "id_mismatch"),
        ("kate/", "invalid_request"),
        ("kate//c-1", "invalid_request"),
        ("/c-1", "invalid_request"),
        ("kate/kate/c-1", "id_mismatch"),
        ("kate/" + "c" * 65, "invalid_request"),
        ("kate/c 1", "invalid_request"),
        ("not an agent/c-1", "invalid_request"),
    ],
)
def test_a_header_that_names_another_agent_or_no_id_is_refused_and_attributed_to_nobody(given_id: str, reason: str) -> None:
    bad = refused("run", {"flow_id": FLOW}, {"Nats-Msg-Id": given_id})
    assert (bad.reason, bad.identity) == (reason, None)


def test_the_inbox_is_named_for_good_and_for_bad_requests() -> None:
    headers = ID | {"Taskflow-Reply-To": "_INBOX.kate.1"}
    assert taken("run", OF_FLOW, headers).reply_to == "_INBOX.kate.1"
    assert refused("run", {}, headers).reply_to == "_INBOX.kate.1"
    assert taken("run", OF_FLOW, ID | {"Taskflow-Reply-To": "$JS.API.STREAM.PURGE.X"}).reply_to is None


@pytest.mark.parametrize("verb", sorted(GOOD))
@pytest.mark.parametrize("compact", [True, False])
def test_a_command_truncated_at_any_byte_is_malformed(verb: str, compact: bool) -> None:
    body = json.dumps(GOOD[verb], separators=(",", ":") if compact else None).encode()
    assert taken(verb, body).verb == verb
    for end in range(len(body)):
        assert refused(verb, body[:end]).reason == "malformed"


@pytest.mark.parametrize(
    "body, reason",
    [
        (b"", "malformed"),
        (b"  \n", "malformed"),
        (json.dumps(START).encode() * 2, "malformed"),
        (b'{"controller_id":"\xc0\xaf","goal":"g"}', "malformed"),
        (b'{"controller_id":"\xff","goal":"g"}', "malformed"),
        (b"[]", "malformed"),
        (b'"text"', "malformed"),
        (b"7", "malformed"),
        (b"null", "malformed"),
        (b'{"controller_id":"c","goal":"g","state":{"a":NaN}}', "malformed"),
        (b'{"controller_id":"c","goal":"g","state":{"a":Infinity}}', "malformed"),
        (b'{"controller_id":"c","goal":"g","state":{"a":1e400}}', "malformed"),
        (b'{"controller_id":"c","goal":"\\ud800"}', "malformed"),
        (b'{"controller_id":"c","goal":"g","goal":"h"}', "invalid_request"),
        (b'{"controller_id":"c","goal":"g","state":' + b'{"a":' * 32 + b"1" + b"}" * 32 + b"}", "too_deep"),
        (b'{"controller_id":"c","goal":"g","state":' + b'{"a":' * 999 + b"1" + b"}" * 999 + b"}", "too_deep"),
        (b'{"controller_id":"c","goal":"g","state":{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}}", "too_deep"),
        (json.dumps(START | {"state": dict.fromkeys(map(str, range(20_000)), 1)}).encode(), "invalid_request"),
        (json.dumps(START | {"state": {"k" * 102_400: 1}}).encode(), "invalid_request"),
        (json.dumps(START | {"state": {"a": "x" * 262_144}}).encode(), "too_large"),
    ],
)
def test_what_cannot_be_read_names_its_reason_and_is_attributed_by_the_header(body: bytes, reason: str) -> None:
    bad = refused("start", body)
    assert bad.reason == reason
    assert bad.identity is not None
    assert bad.identity.key == "c-1"
    assert refused("start", body).identity == bad.identity
    assert refused("start", body, {}).identity is None


def test_a_bad_request_is_attributed_by_a_body_id_that_can_be_read() -> None:
    bad = refused("run", {"command_id": "c-9"}, {})
    assert bad.identity is not None
    assert bad.identity.key == "c-9"
    assert refused("run", {"command_id": 9}, {}).identity is None


def test_a_body_of_exactly_the_limit_is_taken() -> None:
    body = json.dumps(START | {"state": {"a": ""}}).encode()
    whole = body.replace(b'"a": ""', b'"a": "%b"' % (b"x" * (262_144 - len(body))))
    assert len(whole) == 262_144
    assert taken("start", whole).verb == "start"


WRONG_FIELDS: tuple[tuple[str, dict[str, Any], str, str], ...] = (
    ("start", {"goal": ...}, "/goal", "goal"),
    ("start", {"controller_id": ...}, "/controller_id", "controller_id"),
    ("run", {"flow_id": ...}, "/flow_id", "flow_id"),
    ("fail", {"reason": ...}, "/reason", "reason"),
    ("observe", {"run_id": ...}, "/run_id", "run_id"),
    ("wait", {"wait_condition": ...}, "/wait_condition", "wait_condition"),
    ("start", {"gaol": 1}, "/gaol", "goal"),
    ("start", {"a/b~`c": 1}, "/a~1b~0`c", "a/b~`c"),
    ("run", {"agent": "other"}, "/agent", "agent"),
    ("start", {"flow_id": "x"}, "/flow_id", "UUID"),
    ("run", {"flow_id": FLOW.replace("-", "")}, "/flow_id", "UUID"),
    ("run", {"flow_id": FLOW + "\n"}, "/flow_id", "UUID"),
    ("run", {"flow_id": f"{{{FLOW}}}"}, "/flow_id", "UUID"),
    ("run", {"flow_id": 7}, "/flow_id", "whole number"),
    ("run", {"flow_id": None}, "/flow_id", "UUID"),
    ("run", {"expected_revision": "1"}, "/expected_revision", "text"),
    ("run", {"expected_revision": 1.0}, "/expected_revision", "a number"),
    ("run", {"expected_revision": True}, "/expected_revision", "true or false"),
    ("run", {"session_id": ""}, "/session_id", "128"),
    ("run", {"session_id": "s" * 129}, "/session_id", "128"),
    ("run", {"session_id": "s\n"}, "/session_id", "control characters"),
    ("run", {"session_id": "s\x00"}, "/session_id", "control characters"),
    ("run", {"session_id": None}, "/session_id", "128"),
    ("start", {"controller_id": ""}, "/controller_id", "1024"),
    ("start", {"controller_id": "a\x00"}, "/controller_id", "control characters"),
    ("start", {"controller_id": "a\n"}, "/controller_id", "control characters"),
    ("start", {"controller_id": "a" * 1025}, "/controller_id", "1024"),
    ("start", {"goal": "g" * 4097}, "/goal", "4096"),
    ("start", {"goal": "g\x00"}, "/goal", "NUL"),
    ("start", {"goal": {"a": 1}}, "/goal", "object"),
    ("start", {"idempotency_key": "k" * 257}, "/idempotency_key", "256"),
    ("start", {"mirrored": "yes"}, "/mirrored", "text"),
    ("start", {"mirrored": 1}, "/mirrored", "whole number"),
    ("start", {"mirrored": True, "hold": True}, "/hold", "mirrored"),
    ("start", {"state": []}, "/state", "list"),
    ("start", {"state": None}, "/state", "null"),
    ("advance", {"patch": 1}, "/patch", "whole number"),
    ("advance", {"current_step": ""}, "/current_step", "1024"),
    ("finish", {"final_state": "x"}, "/final_state", "text"),
    ("cancel", {"mode": "later"}, "/mode", "request"),
    ("observe", {"status": "done"}, "/status", "pending"),
    ("observe", {"run_id": "r" * 257}, "/run_id", "256"),
    ("wait", {"wait_condition": "manual"}, "/wait_condition", "text"),
    ("advance", {"patch": {"x": {"y": "HUGE"}}}, "/patch", "large"),
)
"""A verb, what is wrong with its fields, the pointer to it, and one word that says what. Sentences: snapshots/request_refusals.txt."""


def misfit(verb: str, change: dict[str, Any]) -> FlowError:
    """Return how a request is refused whose fields were changed; `...` leaves one out."""
    fields = {key: value for key, value in (GOOD[verb] | change).items() if value is not ...}
    return refused(verb, json.dumps(fields).replace('"HUGE"', "1e400").encode()).error


def test_a_bad_field_is_named_in_words_and_by_pointer() -> None:
    for verb, change, path, word in WRONG_FIELDS:
        error = misfit(verb, change)
        assert isinstance(error, InvalidRequest), (verb, change)
        assert (error.details["path"], word in error.message) == (path, True), (verb, change, error.message)


def test_refusals_of_fields_are_word_for_word_as_they_were() -> None:
    said = "".join(
        f"{verb} {path}, {_shortened(change)}\n    → {misfit(verb, change).message}\n\n" for verb, change, path, _ in WRONG_FIELDS
    )
    assert said == golden("request_refusals.txt", said)


def _shortened(change: dict[str, Any]) -> str:
    return re.sub(r"(.)\1{30,}", r"\1\1\1…", str(change))


@pytest.mark.parametrize(
    "text",
    ["\x1b[2J", "\u2028", "\u202eabc", "__proto__", "<script>alert(1)</script>", "{{7*7}}", "%n", "${jndi:ldap://x}", "'; DROP TABLE f;--"],
)
def test_free_text_is_kept_as_it_is(text: str) -> None:
    command = taken("start", START | {"goal": text, "current_step": text, "state": {text: text}}).stimulus
    assert isinstance(command, flow.StartFlow)
    assert (command.goal, command.current_step, command.state_json) == (text, text, {text: text})


@pytest.mark.parametrize("verb", ["", "begin", "delegates", "Start", "start\n", "s" * 10_000])
def test_an_unknown_verb_is_unsupported_whatever_the_body(verb: str) -> None:
    bad = refused(verb, b"\xff")
    assert (bad.reason, type(bad.error)) == ("unsupported_verb", UnsupportedVerb)
    assert bad.identity is not None
    assert len(bad.error.message) < 300


def test_on_the_api_the_queries_are_among_the_known_verbs() -> None:
    """CONTRACT 1 and 2: who asks there can ask them; who publishes a command cannot."""
    asked, sent = read("xyzzy", {}, require_id=False), read("xyzzy", {})
    assert isinstance(asked, Unusable)
    assert isinstance(sent, Unusable)
    for verb in QUERIES.keys() - COMMANDS.keys():
        assert verb in asked.error.message
        assert verb not in sent.error.message


@pytest.mark.parametrize("verb, meant", [("START", "start"), ("List_Mine", "list_mine")])
def test_a_verb_in_other_letters_is_answered_with_the_one_that_was_meant(verb: str, meant: str) -> None:
    asked = read(verb, {}, require_id=False)
    assert isinstance(asked, Unusable)
    assert f"did you mean {meant}?" in asked.error.message


def test_hints_lead_to_the_right_verb_and_the_right_subject() -> None:
    assert "did you mean start?" in refused("stat", {}).error.message
    assert "status is a query" in refused("status", {}).error.message


@pytest.mark.parametrize(
    "headers",
    [
        ID | {"X-Big": "x" * 65_536},
        ID | {f"X-{n}": "v" for n in range(1000)},
        ID | {"X-Folded": "a\r\nNats-Msg-Id: c-2"},
        ID | {"Status": "503", "traceparent": "\ud800", "": ""},
    ],
)
def test_strange_headers_change_nothing(headers: dict[str, str]) -> None:
    assert taken("run", OF_FLOW, headers) == taken("run", OF_FLOW)


def test_a_subject_that_names_nobody_is_refused() -> None:
    bad = refuse_stray("taskflow.cmd.k\x1b[2Jate.start" + "x" * 1000)
    assert (bad.reason, bad.identity, bad.reply_to) == ("invalid_request", None, None)
    assert bad.error.message.isprintable()


@pytest.mark.parametrize(
    "verb, body, request_",
    [
        ("status", OF_FLOW, requests.Status(flow_id=FLOW)),
        ("list_mine", {}, requests.ListMine()),
        ("list_mine", {"status": "waiting", "limit": 0}, requests.ListMine(status=FlowStatus.WAITING, limit=0)),
        ("list_mine", {"cursor": "abc"}, requests.ListMine(cursor="abc")),
        ("steps", OF_FLOW, requests.Steps(flow_id=FLOW)),
        ("history", OF_FLOW | {"limit": 1000}, requests.History(flow_id=FLOW, limit=1000)),
        ("waits", {}, requests.Waits()),
        ("waits", OF_FLOW, requests.Waits(flow_id=FLOW)),
        ("outcome", {"command_id": "c-1"}, requests.OutcomeQuery(command_id="c-1")),
    ],
)
def test_a_query_is_read_for_the_callers_session(verb: str, body: dict[str, Any], request_: requests.Request) -> None:
    assert read_query("kate", verb, json.dumps(body).encode()) == Query("agent:kate:session:main", "kate", verb, request_)
    other = read_query("kate", verb, json.dumps(body | {"session_id": "s"}).encode())
    assert isinstance(other, Query)
    assert other.owner == "agent:kate:session:s"


def test_an_empty_query_asks_with_every_default() -> None:
    assert isinstance(read_query("kate", "list_mine", b""), Query)
    assert isinstance(read_query("kate", "status", b""), InvalidRequest)


@pytest.mark.parametrize(
    "verb, body, path",
    [
        ("list_mine", {"limit": -1}, "/limit"),
        ("list_mine", {"limit": 1001}, "/limit"),
        ("list_mine", {"limit": "5"}, "/limit"),
        ("list_mine", {"status": "done"}, "/status"),
        ("list_mine", {"owner": "agent:other:session:main"}, "/owner"),
        ("outcome", {}, "/command_id"),
        ("outcome", {"command_id": "a b"}, "/command_id"),
        ("status", {"flow_id": "x"}, "/flow_id"),
        ("status", [], ""),
    ],
)
def test_a_bad_query_is_refused_by_pointer(verb: str, body: Any, path: str) -> None:
    error = read_query("kate", verb, json.dumps(body).encode())
    assert isinstance(error, InvalidRequest)
    assert error.details["path"] == path


def test_a_command_is_no_query_and_an_unknown_query_is_unsupported() -> None:
    for verb in ("start", "look", ""):
        assert isinstance(read_query("kate", verb, b"{}"), UnsupportedVerb)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(FLOW),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = sorted({name for shape in (COMMANDS | QUERIES).values() for name in shape.__struct_fields__})
BODIES = st.binary(max_size=100) | st.dictionaries(st.sampled_from(FIELDS), ANYTHING, max_size=5).map(lambda d: json.dumps(d).encode())
HEADERS = st.dictionaries(st.sampled_from(["Nats-Msg-Id", "nats-msg-id", "Taskflow-Reply-To", "traceparent", "x"]), st.text(max_size=70))


@given(st.sampled_from([*COMMANDS, *QUERIES, "other"]), BODIES, HEADERS, st.booleans())
def test_any_bytes_are_understood_or_unusable_and_never_raise(verb: str, body: bytes, headers: dict[str, str], require_id: bool) -> None:
    verdict = read_command("kate", verb, body, headers, Counting(), require_id=require_id)
    if isinstance(verdict, Unusable):
        assert verdict.reason in REASONS
        assert verdict.error.message
    else:
        assert verb in COMMANDS
    assert isinstance(read_query("kate", verb, body), Query | FlowError)


@given(st.sampled_from(sorted(GOOD)), st.data())
def test_a_good_body_with_one_byte_changed_never_raises(verb: str, data: st.DataObject) -> None:
    body = bytearray(json.dumps(GOOD[verb]).encode())
    body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    assert isinstance(read(verb, bytes(body)), Inbound | Unusable)
