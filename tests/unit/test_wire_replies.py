"""Reading replies: bindings, correlation, payloads, identities (CONTRACT 5, SEMANTICS 4)."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nats_taskflow.client.replies import put_in_envelope
from nats_taskflow.errors import Forbidden, InvalidRequest, TopicNotBound
from nats_taskflow.flow.ids import bad_id
from nats_taskflow.flow.stimuli import Reply
from nats_taskflow.wire.inbound import REASONS, Ignored, Inbound, Unusable
from nats_taskflow.wire.replies import ReplyBindings
from nats_taskflow.wire.reply_bindings import Binding, check_bindings
from nats_taskflow.wire.subjects import Subjects

FLOW = "01931c5e-7b2a-7c3d-9e4f-0a1b2c3d4e5f"
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TOPIC = "agent.delegate.reply"
PLAIN = ReplyBindings([Binding(TOPIC)], Subjects())


def read(
    body: Any, headers: dict[str, str] | None = None, *, subject: str = TOPIC, bindings: ReplyBindings = PLAIN, seq: int = 7
) -> Inbound | Unusable | Ignored:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return bindings.read(subject, headers or {}, raw, stream="TASKFLOW_IN", seq=seq, arrived_us=5)


def reply(body: Any, headers: dict[str, str] | None = None, *, subject: str = TOPIC, bindings: ReplyBindings = PLAIN) -> Reply:
    verdict = read(body, headers, subject=subject, bindings=bindings)
    assert isinstance(verdict, Inbound), verdict
    assert isinstance(verdict.stimulus, Reply)
    assert verdict.stimulus.key == verdict.identity.key
    assert verdict.identity.scope == "reply"
    return verdict.stimulus


def refused(body: Any, headers: dict[str, str] | None = None, *, subject: str = TOPIC, bindings: ReplyBindings = PLAIN) -> Unusable:
    verdict = read(body, headers, subject=subject, bindings=bindings)
    assert isinstance(verdict, Unusable), verdict
    assert verdict.reason in REASONS
    return verdict


def bound(**options: Any) -> ReplyBindings:
    return ReplyBindings([Binding(**{"subject": TOPIC} | options)], Subjects())


def test_a_reply_is_read_whole() -> None:
    body = {"correlation_id": "c", "payload": {"answer": 42}, "event_id": "e", "flow_id": FLOW.upper()}
    assert reply(body, {"traceparent": TRACE}) == Reply(
        topic=TOPIC,
        correlation_id="c",
        payload={"answer": 42},
        event_id="e",
        arrived_us=5,
        key=f"{TOPIC}\nc\ne",
        flow_id=FLOW,
        trace=TRACE,
        tenant=TOPIC,
    )


ENVELOPED = {"id": "env", "timestamp": "t", "topic": "x", "source": "y", "session_id": None}


@pytest.mark.parametrize(
    "body, headers, correlation_id, payload",
    [
        ({"correlation_id": "b", "payload": 1}, {}, "b", 1),
        ({"correlation_id": "b", "payload": None}, {}, "b", None),
        ({"correlation_id": "b", "answer": 1}, {}, "b", {"correlation_id": "b", "answer": 1}),
        ({"correlation_id": "b", "payload": 1}, {"Correlation-Id": "h"}, "h", 1),
        ({"payload": 1}, {"correlation-ID": "h"}, "h", {"payload": 1}),
        ({"correlation_id": None, "payload": 1}, {"Correlation-Id": "h"}, "h", 1),
        ([1, 2], {"Correlation-Id": "h"}, "h", [1, 2]),
        (b"null", {"Correlation-Id": "h"}, "h", None),
        (b'"text"', {"Correlation-Id": "h"}, "h", "text"),
        (b"", {"Correlation-Id": "h"}, "h", {"text": ""}),
        (b"not json", {"Correlation-Id": "h"}, "h", {"text": "not json"}),
        (b'{"a":', {"Correlation-Id": "h"}, "h", {"text": '{"a":'}),
        (b'{"a":NaN}', {"Correlation-Id": "h"}, "h", {"text": '{"a":NaN}'}),
        (b"\xff\x00", {"Correlation-Id": "h"}, "h", {"base64": "/wA="}),
        (ENVELOPED | {"payload": {"correlation_id": "b", "payload": 1}}, {}, "b", 1),
        (ENVELOPED | {"payload": {"correlation_id": "b", "x": 1}}, {}, "b", {"correlation_id": "b", "x": 1}),
        (ENVELOPED | {"payload": [1]}, {"Correlation-Id": "h"}, "h", [1]),
        (
            {"correlation_id": "b", "payload": 1},
            {"Nats-Service-Error-Code": "503", "Nats-Service-Error": "busy"},
            "b",
            {"error": {"code": "503", "message": "busy"}},
        ),
        (b"", {"Correlation-Id": "h", "nats-service-error-code": "500"}, "h", {"error": {"code": "500", "message": ""}}),
    ],
)
def test_correlation_and_payload_are_found(body: Any, headers: dict[str, str], correlation_id: str, payload: Any) -> None:
    found = reply(body, headers)
    assert (found.topic, found.correlation_id, found.payload) == (TOPIC, correlation_id, payload)


MARK = b"\xef\xbb\xbf"


def test_a_reply_may_begin_with_a_byte_order_mark() -> None:
    body = json.dumps({"correlation_id": "c", "payload": {"a": 1}}).encode()
    assert reply(MARK + body) == reply(body)
    assert read(MARK + body) == read(body), "and is a repeat of the one without"
    assert reply(MARK + json.dumps(ENVELOPED | {"payload": {"correlation_id": "c"}}).encode()).event_id == "env"
    assert reply(MARK + b"text", subject="taskflow.reply.kate.c").payload == {"text": "\ufefftext"}, "what is no JSON is as it came"


@pytest.mark.parametrize(
    "headers, body, envelope, event_id",
    [
        ({"nats-msg-id": "h"}, {"event_id": "b"}, True, "h"),
        ({}, {"event_id": "b"}, True, "b"),
        ({}, {"event_id": 7}, True, "env"),
        ({}, {}, True, "env"),
        ({}, {"event_id": None}, False, "TASKFLOW_IN:7"),
        ({}, {}, False, "TASKFLOW_IN:7"),
    ],
)
def test_the_event_id_is_the_first_that_is_there(headers: dict[str, str], body: Any, envelope: bool, event_id: str) -> None:
    inner = {"correlation_id": "c"} | body
    found = reply(ENVELOPED | {"payload": inner} if envelope else inner, headers)
    assert found.event_id == event_id
    assert found.key == f"{TOPIC}\nc\n{event_id}"


@pytest.mark.parametrize(
    "body, headers, path",
    [
        ({"correlation_id": ""}, {}, "/correlation_id"),
        ({"correlation_id": 7}, {}, "/correlation_id"),
        ({"correlation_id": "c\n"}, {}, "/correlation_id"),
        ({"correlation_id": "c\x00"}, {}, "/correlation_id"),
        ({"correlation_id": "c\x85"}, {}, "/correlation_id"),
        ({"correlation_id": "c" * 257}, {}, "/correlation_id"),
        ({}, {"Correlation-Id": ""}, "/correlation_id"),
        ({}, {"Correlation-Id": "c\udcff"}, "/correlation_id"),
        ({"correlation_id": "c", "event_id": "e\n"}, {}, "/event_id"),
        ({"correlation_id": "c"}, {"Nats-Msg-Id": "e" * 257}, "/event_id"),
    ],
)
def test_bad_ids_are_refused_and_never_trimmed(body: Any, headers: dict[str, str], path: str) -> None:
    bad = refused(body, headers)
    assert (bad.reason, bad.error.details["path"]) == ("invalid_request", path)


@pytest.mark.parametrize(
    "body", [{}, {"payload": 1}, {"correlation_id": None}, [], b"text", b"\xff", b"", {"payload": {"correlation_id": "c"}}]
)
def test_a_reply_without_a_correlation_id_says_so(body: Any) -> None:
    assert refused(body).reason == "no_correlation"


@pytest.mark.parametrize(
    "body, reason",
    [
        (b'{"a":"' + b"x" * 262_144 + b'"}', "too_large"),
        (b"[" * 33 + b"]" * 33, "too_deep"),
        (b"[" * 100_000, "too_deep"),
        (b'{"correlation_id":"a","correlation_id":"b"}', "invalid_request"),
        (b"[1e400]", "malformed"),
        (b'{"a":"\\ud800"}', "malformed"),
    ],
)
def test_replies_are_held_to_the_same_limits(body: bytes, reason: str) -> None:
    assert refused(body, {"Correlation-Id": "h"}).reason == reason


def test_only_a_body_that_names_its_correlation_id_filters_by_flow() -> None:
    assert reply({"correlation_id": "c", "flow_id": FLOW}).flow_id == FLOW
    assert reply({"correlation_id": "c", "flow_id": "no uuid"}).flow_id is None
    assert reply({"flow_id": FLOW}, {"Correlation-Id": "c"}).flow_id is None
    assert reply({"flow_id": FLOW, "correlation_id": "x"}, subject="taskflow.reply.kate.c").flow_id is None


def test_the_built_in_reply_topic_takes_the_whole_body_for_the_correlation_id_of_the_subject() -> None:
    body = {"correlation_id": "other", "payload": 1}
    found = reply(body, {"Correlation-Id": "other"}, subject="taskflow.reply.kate.c-1")
    assert (found.topic, found.correlation_id, found.payload) == ("taskflow.reply.kate", "c-1", body)
    assert reply(b"plain text", subject="taskflow.reply.kate.c-1").payload == {"text": "plain text"}
    enveloped = reply(ENVELOPED | {"payload": 5}, subject="taskflow.reply.kate.c-1")
    assert (enveloped.payload, enveloped.event_id) == (5, "env")


def test_the_prefix_may_have_several_tokens() -> None:
    bindings = ReplyBindings([], Subjects("corp.tf"))
    assert reply(b"1", subject="corp.tf.reply.kate.c", bindings=bindings).topic == "corp.tf.reply.kate"
    assert refused(b"1", subject="taskflow.reply.kate.c", bindings=bindings).reason == "topic_not_bound"


def test_the_references_resume_message_names_flow_topic_and_correlation() -> None:
    body = {"flow_id": FLOW.upper(), "topic": "any.topic", "correlation_id": "c", "payload": {"a": 1}, "extra": 1}
    found = reply(body, {"Nats-Msg-Id": "e"}, subject="taskflow.resume")
    assert (found.flow_id, found.topic, found.correlation_id, found.payload, found.event_id) == (FLOW, "any.topic", "c", {"a": 1}, "e")
    del body["payload"]
    assert reply(body, subject="taskflow.resume").payload is msgspec.UNSET
    wrapped = reply(ENVELOPED | {"payload": body}, subject="taskflow.resume")
    assert (wrapped.flow_id, wrapped.event_id) == (FLOW, "env")


@pytest.mark.parametrize(
    "change, reason, path",
    [
        ({"flow_id": "x"}, "invalid_request", "/flow_id"),
        ({"flow_id": None}, "invalid_request", "/flow_id"),
        ({"flow_id": FLOW + "\n"}, "invalid_request", "/flow_id"),
        ({"topic": ""}, "invalid_request", "/topic"),
        ({"topic": None}, "invalid_request", "/topic"),
        ({"correlation_id": "c\n"}, "invalid_request", "/correlation_id"),
        ({"correlation_id": None}, "invalid_request", "/correlation_id"),
    ],
)
def test_a_bad_resume_message_is_refused_by_pointer(change: dict[str, Any], reason: str, path: str) -> None:
    bad = refused({"flow_id": FLOW, "topic": "t", "correlation_id": "c"} | change, subject="taskflow.resume")
    assert (bad.reason, bad.error.details["path"]) == (reason, path)


@pytest.mark.parametrize("body", [b"", b"text", b"[]", b"null", b'{"flow_id":'])
def test_a_resume_message_that_is_no_object_is_malformed(body: bytes) -> None:
    assert refused(body, subject="taskflow.resume").reason == "malformed"


def test_correlation_can_be_read_from_a_named_header() -> None:
    bindings = bound(correlation="header:X-Job")
    assert reply({"correlation_id": "b", "payload": 1}, {"x-job": "j"}, bindings=bindings).correlation_id == "j"
    assert refused({"correlation_id": "b"}, {"Correlation-Id": "h"}, bindings=bindings).reason == "no_correlation"


def test_the_names_of_the_correlation_headers_can_be_chosen() -> None:
    bindings = ReplyBindings([Binding(TOPIC)], Subjects(), correlation_headers=("X-A", "X-B"))
    assert reply({}, {"X-B": "b"}, bindings=bindings).correlation_id == "b"
    assert reply({}, {"X-B": "b", "X-A": "a"}, bindings=bindings).correlation_id == "a"


def test_correlation_and_payload_can_be_read_by_pointer() -> None:
    bindings = bound(correlation="body:/meta/job~1id", payload="/result/0")
    body = {"meta": {"job/id": "j"}, "result": [{"a": 1}]}
    found = reply(body, bindings=bindings)
    assert (found.correlation_id, found.payload) == ("j", {"a": 1})
    assert reply(ENVELOPED | {"payload": body}, bindings=bindings).payload == {"a": 1}
    assert refused({"meta": {}}, bindings=bindings).reason == "no_correlation"
    assert refused({"meta": {"job/id": 7}}, bindings=bindings).error.details["path"] == "/correlation_id"
    missing = refused(body | {"result": []}, bindings=bindings)
    assert (missing.reason, missing.error.details["path"]) == ("invalid_request", "/result/0")


def test_correlation_by_subject_makes_the_rest_of_the_subject_the_topic() -> None:
    bindings = ReplyBindings([Binding("jobs.*.done.*", correlation="subject")], Subjects())
    found = reply({"correlation_id": "b", "payload": 1}, subject="jobs.x.done.j-1", bindings=bindings)
    assert (found.topic, found.correlation_id, found.payload) == ("jobs.x.done", "j-1", 1)
    assert bindings.refusal("jobs.x.done", "kate") is None
    assert isinstance(bindings.refusal("jobs.x.done.j-1", "kate"), TopicNotBound)


def test_a_pattern_binding_takes_the_subject_it_arrived_on_as_the_topic() -> None:
    bindings = ReplyBindings([Binding("agent.route.*"), Binding("deep.>")], Subjects())
    assert reply({"correlation_id": "c"}, subject="agent.route.x", bindings=bindings).topic == "agent.route.x"
    assert reply({"correlation_id": "c"}, subject="deep.a.b.c", bindings=bindings).topic == "deep.a.b.c"


def test_what_does_not_match_where_is_ignored() -> None:
    bindings = bound(where={"/type": "done", "/final": True, "/n": 1})
    body = {"correlation_id": "c", "type": "done", "final": True, "n": 1.0}
    assert reply(body, bindings=bindings).correlation_id == "c"
    for change in ({"type": "progress"}, {"final": 1}, {"final": None}, {"n": True}, {"n": "1"}):
        assert isinstance(read(body | change, bindings=bindings), Ignored)
    strangers: list[Any] = [{}, [], b"text", b""]
    for other in strangers:
        assert isinstance(read(other, bindings=bindings), Ignored)


ACKNOWLEDGEMENTS: list[Any] = [
    {"stream": "TASKFLOW_IN", "seq": 7},
    {"stream": "TASKFLOW_IN", "seq": 7, "duplicate": True, "domain": "hub", "val": "3", "batch": "b", "count": 2},
    {"error": {"code": 400, "err_code": 10060, "description": "expected stream does not match"}, "stream": "TASKFLOW_IN", "seq": 0},
    {"error": {"code": 400, "err_code": 10174, "description": "atomic publish is disabled"}},
    {"error": {"code": 503, "err_code": 10077}},
]
ANSWERS: list[Any] = [
    {"stream": "camera-3", "seq": 7, "frames": []},
    {"stream": "TASKFLOW_IN", "seq": "7"},
    {"stream": "TASKFLOW_IN", "seq": True},
    {"stream": "TASKFLOW_IN"},
    {"error": {"code": "503", "message": "out of tokens"}},
    {"error": {"code": 404, "err_code": 10059, "description": "stream not found"}, "type": "io.nats.jetstream.api.v1.stream_info_response"},
    {"error": {"err_code": "10060"}},
    {"error": "10060"},
]
ON_EVERY_SUBJECT = ["taskflow.reply.kate.c", TOPIC, "agent.route.x", "work.c", "taskflow.resume", "no.longer.bound"]


@pytest.mark.parametrize("subject", ON_EVERY_SUBJECT)
@pytest.mark.parametrize("body", ACKNOWLEDGEMENTS)
def test_what_the_broker_says_of_a_publication_is_no_reply_wherever_it_comes(subject: str, body: Any) -> None:
    """SEMANTICS R0."""
    bindings = ReplyBindings([Binding(TOPIC), Binding("agent.route.*"), Binding("work.*", correlation="subject")], Subjects())
    assert isinstance(read(body, subject=subject, bindings=bindings), Ignored)
    assert isinstance(read(body, {"Correlation-Id": "c", "Nats-Msg-Id": "m"}, subject=subject, bindings=bindings), Ignored)


@pytest.mark.parametrize("body", ANSWERS)
def test_an_answer_that_only_resembles_an_acknowledgement_is_an_answer(body: Any) -> None:
    """SEMANTICS R0."""
    assert reply(body, subject="taskflow.reply.kate.c").payload == body


def test_an_acknowledgement_in_an_envelope_was_put_there_by_somebody() -> None:
    """SEMANTICS R0: the broker knows no envelopes."""
    assert reply(ENVELOPED | {"payload": ACKNOWLEDGEMENTS[0]}, subject="taskflow.reply.kate.c").payload == ACKNOWLEDGEMENTS[0]


@pytest.mark.parametrize("subject", ["taskflow.reply.kate.c", TOPIC])
@pytest.mark.parametrize(
    "body",
    [
        b'{"correlation_id":"c","payload":{"a":1}}',
        b'{"correlation_id":"c","flow_id":"%b","payload":1}' % FLOW.encode(),
        b"[1]",
        b"",
        b"x\xff",
        json.dumps(ENVELOPED | {"payload": {"a": 1}}).encode(),
    ],
)
def test_a_reply_with_its_id_in_an_envelope_is_the_same_message(subject: str, body: bytes) -> None:
    """SEMANTICS R5: a client sends it like that once more where the broker took it for a repeat."""
    named = {"Correlation-Id": "c"}
    first = read(body, {**named, "Nats-Msg-Id": "e"}, subject=subject)
    again = read(put_in_envelope(subject, body, "e"), named, subject=subject)
    assert isinstance(first, Inbound)
    assert isinstance(again, Inbound)
    assert again.identity == first.identity


def test_a_subject_that_nothing_covers_any_more_is_dead_lettered() -> None:
    assert refused({"correlation_id": "c"}, subject="old.topic").reason == "topic_not_bound"


def test_identity_tells_repeats_from_conflicts() -> None:
    def digest(body: Any, headers: dict[str, str] | None = None) -> bytes:
        verdict = read(body, headers)
        assert isinstance(verdict, Inbound)
        return verdict.identity.digest

    same: dict[str, Any] = {"correlation_id": "c", "payload": {"a": 1, "b": [1.5, None]}}
    assert digest(same) == digest(b'{"payload":{"b":[1.50,null],"a":1},"correlation_id":"c"}') == digest(ENVELOPED | {"payload": same})
    others: list[dict[str, Any]] = [{"payload": {"a": 2}}, {"payload": None}, {"payload": {}}, {"flow_id": FLOW}]
    assert len({digest(same), *(digest(same | other) for other in others)}) == len(others) + 1


@pytest.mark.parametrize(
    "topic, agent, refusal",
    [
        (TOPIC, "kate", None),
        (TOPIC, None, None),
        ("agent.route.x", "kate", None),
        ("agent.route.x", "bob", Forbidden),
        ("agent.route.x", None, None),
        ("agent.route.*", "kate", TopicNotBound),
        ("agent.route.x.y", "kate", TopicNotBound),
        ("agent.route", "kate", TopicNotBound),
        ("taskflow.reply.kate", "kate", None),
        ("taskflow.reply.kate", "bob", Forbidden),
        ("taskflow.reply.kate", None, None),
        ("taskflow.reply.kate.c", "kate", TopicNotBound),
        ("taskflow.reply", "kate", TopicNotBound),
        ("taskflow.resume", "kate", TopicNotBound),
        ("taskflow.cmd.kate.start", None, TopicNotBound),
        ("Agent.delegate.reply", "kate", TopicNotBound),
        ("agent.delegate.reply ", "kate", TopicNotBound),
        ("", None, TopicNotBound),
    ],
)
def test_a_flow_waits_only_on_topics_that_are_bound_and_its_owners(topic: str, agent: str | None, refusal: type[Exception] | None) -> None:
    bindings = ReplyBindings([Binding(TOPIC), Binding("agent.route.*", owners=("kate", "ana"))], Subjects())
    found = bindings.refusal(topic, agent)
    assert (type(found) if found else None) is refusal


def test_a_topic_that_is_not_bound_is_refused_with_those_that_the_agent_may_wait_on_and_with_where_to_add_it() -> None:
    bindings = ReplyBindings(
        [Binding(TOPIC), Binding("ana.private", owners=("ana",)), Binding("jobs.*", owners=("kate", "ana"))], Subjects()
    )
    refused = bindings.refusal("agent.delegat.reply", "kate")
    assert isinstance(refused, TopicNotBound)
    for named in (TOPIC, "jobs.*", "taskflow.reply.kate", "TASKFLOW_REPLY_TOPICS"):
        assert named in refused.message
    assert "ana" not in refused.message
    trusted = bindings.refusal("agent.delegat.reply", None)
    assert trusted is not None
    assert "ana.private" in str(trusted)


def test_the_dead_letter_of_a_subject_that_is_bound_no_more_says_where_to_add_it() -> None:
    assert "TASKFLOW_REPLY_TOPICS" in refused({"correlation_id": "c"}, subject="old.topic").error.message


def test_bindings_know_which_stream_carries_them() -> None:
    bindings = ReplyBindings([Binding(TOPIC), Binding("jobs.done", stream="JOBS"), Binding("jobs.lost", stream="JOBS")], Subjects())
    assert bindings.topics() == (TOPIC,)
    assert bindings.streams() == ("JOBS",)
    assert bindings.topics("JOBS") == ("jobs.done", "jobs.lost")


@pytest.mark.parametrize(
    "binding, sentence",
    [
        (Binding(""), "subject: '' is no NATS subject"),
        (Binding("a..b"), "subject: 'a..b' is no NATS subject"),
        (Binding("*.reply"), "literal first token"),
        (Binding(">"), "literal first token"),
        (Binding("$SYS.x"), "reserved by NATS"),
        (Binding("_INBOX.x"), "reserved by NATS"),
        (Binding("a.b", correlation="subject"), r"must end in \.\*"),
        (Binding("a.>", correlation="subject"), r"must end in \.\*"),
        (Binding("a", correlation="magic"), "correlation: 'magic' is not auto"),
        (Binding("a", correlation="header:"), "correlation: 'header:' is not auto"),
        (Binding("a", correlation="header:X Y"), "correlation: 'header:X Y' is not auto"),
        (Binding("a", correlation="body:"), "correlation: 'body:' is not auto"),
        (Binding("a", correlation="body:x"), "correlation: 'x' is no JSON pointer"),
        (Binding("a", correlation="auto:"), "correlation: 'auto:' is not auto"),
        (Binding("a", payload="x"), "payload: 'x' is no JSON pointer"),
        (Binding("a", owners=()), "owners: nobody"),
        (Binding("a", owners=("k.ate",)), "owners: 'k.ate' is no agent name"),
        (Binding("a", where={"x": 1}), "where: 'x' is no JSON pointer"),
        (Binding("a", where={"/x": [1]}), "where: /x must be compared"),
        (Binding("a", stream="A.B"), "stream: 'A.B' is no stream name"),
        (Binding("taskflow.reply.*.*"), r"overlaps taskflow\.>"),
        (Binding("taskflow.x"), r"overlaps taskflow\.>"),
        (Binding("agent.>"), r"overlaps agent\.delegate\.reply, so a reply would fit both"),
        (Binding(TOPIC), r"overlaps agent\.delegate\.reply"),
    ],
)
def test_a_binding_that_cannot_work_is_refused_naming_the_key(binding: Binding, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        check_bindings([Binding(TOPIC), binding], Subjects())
    assert str(caught.value).startswith(f"[[replies]] {binding.subject}: ")
    with pytest.raises(ValueError, match=sentence):
        ReplyBindings([Binding(TOPIC), binding], Subjects())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(FLOW),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ["correlation_id", "payload", "event_id", "flow_id", "topic", "id", "timestamp", "source", "session_id", "type"]
BODIES = st.binary(max_size=80) | st.dictionaries(st.sampled_from(FIELDS), JSON).map(lambda d: json.dumps(d).encode())
HEADERS = st.dictionaries(
    st.sampled_from(["Correlation-Id", "Nats-Msg-Id", "Nats-Service-Error", "Nats-Service-Error-Code", "traceparent", "X"]),
    st.text(st.characters(), max_size=300),
)
SUBJECTS = st.sampled_from([TOPIC, "taskflow.resume", "taskflow.reply.kate.c", "agent.route.x", "jobs.j", "other"]) | st.text(max_size=30)
MANY = ReplyBindings(
    [Binding(TOPIC), Binding("agent.route.*", where={"/type": "done"}, payload="/payload"), Binding("jobs.*", correlation="subject")],
    Subjects(),
)


@given(SUBJECTS, HEADERS, BODIES)
def test_any_reply_is_understood_unusable_or_ignored_and_never_raises(subject: str, headers: dict[str, str], body: bytes) -> None:
    verdict = MANY.read(subject, headers, body, stream="S", seq=1, arrived_us=1)
    assert isinstance(verdict, Inbound | Unusable | Ignored)
    if isinstance(verdict, Unusable):
        assert verdict.reason in REASONS
        assert verdict.error.message
    elif isinstance(verdict, Inbound):
        assert isinstance(verdict.stimulus, Reply)
        topic, correlation_id, event_id = verdict.identity.key.split("\n")
        assert (verdict.stimulus.topic, verdict.stimulus.correlation_id, verdict.stimulus.event_id) == (topic, correlation_id, event_id)
        if verdict.stimulus.payload is not msgspec.UNSET:
            msgspec.json.encode(verdict.stimulus.payload)


@given(st.text(max_size=4) | st.just("c" * 257))
def test_ids_are_judged_as_the_core_judges_them(text: str) -> None:
    verdict = read(json.dumps({"correlation_id": text}, ensure_ascii=True).encode())
    assert isinstance(verdict, Inbound if bad_id(text) is None else Unusable)


def test_an_error_names_what_is_wrong_for_people_and_programs() -> None:
    bad = refused(b"true or not")
    assert isinstance(bad.error, InvalidRequest)
    assert "correlation id" in bad.error.message
    assert "byte 6" in bad.error.message
