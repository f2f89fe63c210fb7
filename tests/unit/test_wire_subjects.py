"""Names and headers: subjects in both directions, NATS patterns, JSON pointers, header look-ups."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nats_taskflow.wire import headers, json_pointer
from nats_taskflow.wire.subjects import Subjects, covers, is_literal, is_pattern, is_token, overlap

TOKENS = st.from_regex(r"\A[A-Za-z0-9_-]{1,63}\Z")
FLOW = "01931c5e-7b2a-7c3d-9e4f-0a1b2c3d4e5f"


@given(TOKENS, TOKENS, st.sampled_from(["taskflow", "corp.eu.taskflow"]))
def test_what_is_formatted_parses_back(agent: str, other: str, prefix: str) -> None:
    subjects = Subjects(prefix)
    assert subjects.parse_command(subjects.command(agent, other)) == (agent, other)
    assert subjects.parse_api(subjects.api(agent, other)) == (agent, other)
    assert subjects.parse_admin(subjects.admin(other)) == other
    assert subjects.parse_reply(subjects.reply(agent, other)) == (agent, other)
    assert subjects.parse_event(subjects.event(agent, FLOW, other)) == (agent, FLOW, other)
    assert subjects.parse_dead_letter(subjects.dead_letter(other)) == other


@pytest.mark.parametrize(
    "subject,whose",
    [
        ("taskflow.api.kate.start", "kate"),
        ("taskflow.api.kate.no!verb", "kate"),
        ("taskflow.api.k@te.start", "k@te"),
        ("taskflow.api.k@te.no!verb", "k@te"),
        (f"taskflow.api.{'k' * 64}.start", "k" * 64),
        ("taskflow.admin.stats", ""),
        ("taskflow.admin.no!verb", ""),
    ],
)
def test_what_is_no_request_is_its_askers_all_the_same_and_takes_nothing_from_operators(subject: str, whose: str) -> None:
    assert Subjects().asker(subject) == whose


@given(TOKENS, TOKENS)
def test_everything_the_worker_publishes_or_reads_is_captured_by_exactly_one_stream(agent: str, other: str) -> None:
    subjects = Subjects()
    streams = (subjects.inbound(("agent.delegate.reply",)), subjects.events(), subjects.dead_letters())
    for subject, at in (
        (subjects.command(agent, other), 0),
        (subjects.resume, 0),
        (subjects.reply(agent, other), 0),
        ("agent.delegate.reply", 0),
        (subjects.event(agent, FLOW, "resumed"), 1),
        (subjects.dead_letter(other), 2),
    ):
        assert [any(covers(p, subject) for p in patterns) for patterns in streams] == [n == at for n in range(3)]
    assert not any(covers(p, subjects.api(agent, other)) for patterns in streams for p in patterns)


@pytest.mark.parametrize(
    "subject",
    [
        "taskflow.cmd.kate",
        "taskflow.cmd.kate.start.now",
        "taskflow.cmd..start",
        "taskflow.cmd.kate.",
        "taskflow.cmd.kä.start",
        "taskflow.cmd.kate.start\n",
        "taskflow.cmd.ka te.start",
        f"taskflow.cmd.{'k' * 64}.start",
        "other.cmd.kate.start",
        "taskflow.api.kate.start",
        "",
    ],
)
def test_what_is_no_command_subject_is_not_parsed(subject: str) -> None:
    assert Subjects().parse_command(subject) is None


@pytest.mark.parametrize(
    "subject", ["taskflow.reply.kate", "taskflow.reply.kate.a.b", "taskflow.reply.k ate.a", "taskflow.reply.kate.", "x.reply.a.b"]
)
def test_what_is_no_reply_subject_is_not_parsed(subject: str) -> None:
    assert Subjects().parse_reply(subject) is None


def test_events_of_owners_that_are_no_agents_go_under_an_underscore() -> None:
    assert Subjects().event(None, FLOW, "created") == f"taskflow.evt._.{FLOW}.created"
    assert Subjects().event("no agent", FLOW, "created") == f"taskflow.evt._.{FLOW}.created"


@pytest.mark.parametrize("prefix", ["", ".", "a..b", "a.*", "a b", "tä", "a.>"])
def test_a_prefix_that_is_no_subject_is_refused_by_name(prefix: str) -> None:
    with pytest.raises(ValueError, match=r"subjects\.prefix"):
        Subjects(prefix)


@pytest.mark.parametrize(
    "pattern, subject, covered",
    [
        ("a.b", "a.b", True),
        ("a.b", "a.b.c", False),
        ("a.*", "a.b", True),
        ("a.*", "a", False),
        ("a.*", "a.b.c", False),
        ("*.b", "a.b", True),
        ("a.>", "a.b.c", True),
        ("a.>", "a", False),
        (">", "a", True),
        ("a.*.>", "a.b", False),
        ("a.*.>", "a.b.c", True),
        ("A.b", "a.b", False),
    ],
)
def test_patterns_cover_subjects_as_nats_has_it(pattern: str, subject: str, covered: bool) -> None:
    assert covers(pattern, subject) is covered
    assert overlap(pattern, subject) is covered


@pytest.mark.parametrize(
    "one, other, both", [("a.*", "*.b", True), ("a.>", "a.b.c", True), ("a.*", "b.*", False), ("a.*", "a.*.*", False), ("a.>", "a", False)]
)
def test_patterns_overlap_when_some_subject_fits_both(one: str, other: str, both: bool) -> None:
    assert overlap(one, other) is overlap(other, one) is both


@pytest.mark.parametrize("subject", ["a", "a.b", "agent.delegate.reply", "ä.b", "$JS.API"])
def test_literal_subjects_can_be_published_to(subject: str) -> None:
    assert is_literal(subject)
    assert is_pattern(subject)


@pytest.mark.parametrize("subject", ["", ".", "a.", ".a", "a..b", "a b", "a\tb", "a\n", "a.\x00", "a" * 1025])
def test_broken_subjects_are_neither_literal_nor_patterns(subject: str) -> None:
    assert not is_literal(subject)
    assert not is_pattern(subject)


@pytest.mark.parametrize("subject", ["*", "a.*", "a.*.b", "a.>", "*.>", ">"])
def test_patterns_are_not_literal(subject: str) -> None:
    assert is_pattern(subject)
    assert not is_literal(subject)


@pytest.mark.parametrize("subject", ["a.>.b", ">.a", "a*", "a.b>"])
def test_wildcards_are_whole_tokens_and_the_arrow_comes_last(subject: str) -> None:
    assert not is_pattern(subject)


@pytest.mark.parametrize("token", ["kate\n", "", "a.b", "k" * 64, "ка", "a b"])
def test_tokens_have_a_small_alphabet(token: str) -> None:
    assert not is_token(token)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(JSON, st.data())
def test_a_spelled_pointer_finds_what_it_names(document: Any, data: st.DataObject) -> None:
    at: Any = document
    path: list[str | int] = []
    while isinstance(at, dict | list) and at:
        key = data.draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
        path.append(key)
        at = at[key]
    assert json_pointer.look(document, json_pointer.parse(json_pointer.spell(*path))) == at


RFC_6901 = {"foo": ["bar", "baz"], "": 0, "a/b": 1, "c%d": 2, "e^f": 3, "g|h": 4, "i\\j": 5, 'k"l': 6, " ": 7, "m~n": 8}


@pytest.mark.parametrize(
    "pointer, value",
    [
        ("", RFC_6901),
        ("/foo", ["bar", "baz"]),
        ("/foo/0", "bar"),
        ("/", 0),
        ("/a~1b", 1),
        ("/c%d", 2),
        ("/e^f", 3),
        ("/g|h", 4),
        ("/i\\j", 5),
        ('/k"l', 6),
        ("/ ", 7),
        ("/m~0n", 8),
    ],
)
def test_the_examples_of_rfc_6901_hold(pointer: str, value: object) -> None:
    assert json_pointer.look(RFC_6901, json_pointer.parse(pointer)) == value


@pytest.mark.parametrize("pointer", ["/foo/2", "/foo/-", "/foo/01", "/foo/x", "/none", "/foo/0/x", "/foo/١"])
def test_a_pointer_to_nothing_finds_nothing(pointer: str) -> None:
    assert json_pointer.look(RFC_6901, json_pointer.parse(pointer)) is msgspec.UNSET


@pytest.mark.parametrize("pointer", ["foo", "/~", "/~2", "/a~"])
def test_what_is_no_pointer_is_refused_with_a_sentence(pointer: str) -> None:
    with pytest.raises(ValueError, match="is no JSON pointer"):
        json_pointer.parse(pointer)


def test_headers_are_found_whatever_their_case_and_the_exact_spelling_wins() -> None:
    assert headers.find({"nats-MSG-id": "a"}, "Nats-Msg-Id") == "a"
    assert headers.find({"nats-msg-id": "a", "Nats-Msg-Id": "b"}, "Nats-Msg-Id") == "b"
    assert headers.find({"other": "a"}, "Nats-Msg-Id") is None
    assert headers.find({}, "Nats-Msg-Id") is None


GOOD_TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize(
    "text, kept",
    [
        (GOOD_TRACE, True),
        (GOOD_TRACE.upper(), False),
        (GOOD_TRACE + "\n", False),
        ("ff" + GOOD_TRACE[2:], False),
        (GOOD_TRACE[:3] + "0" * 32 + GOOD_TRACE[35:], False),
        (GOOD_TRACE[:36] + "0" * 16 + GOOD_TRACE[52:], False),
        ("", False),
    ],
)
def test_only_a_valid_traceparent_is_carried_on(text: str, kept: bool) -> None:
    assert headers.trace_of({"traceparent": text}) == (text if kept else None)


@pytest.mark.parametrize(
    "text, kept",
    [
        ("_INBOX.kate.abc", True),
        ("_INBOX.x", True),
        ("_INBOX.", False),
        ("_INBOX", False),
        ("_INBOX.*", False),
        ("_INBOX.>", False),
        ("_INBOX.a..b", False),
        ("_INBOX.a b", False),
        ("_INBOX.a\r\nb", False),
        ("_INBOX.ä", False),
        ("_INBOX." + "a" * 255, False),
        ("$JS.API.STREAM.PURGE.TASKFLOW_IN", False),
        ("_INBOXES.a", False),
    ],
)
def test_outcomes_are_only_ever_sent_to_inboxes(text: str, kept: bool) -> None:
    assert headers.inbox_of({"taskflow-reply-to": text}) == (text if kept else None)


@given(st.text())
def test_any_text_becomes_one_short_line(text: str) -> None:
    line = headers.one_line(text)
    assert len(line) <= 256
    assert len((line + ".").splitlines()) == 1
    line.encode()
