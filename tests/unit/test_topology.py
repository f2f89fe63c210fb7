"""The pure parts of the bus room: what settings must be, what subjects cover, what is refused before it is sent."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nats_taskflow.bus import consumer_rules, filters, stream_rules
from nats_taskflow.bus.message_limits import objection
from nats_taskflow.bus.nats import monitor, server_version
from nats_taskflow.bus.port import ConsumerSpec, StreamSpec
from nats_taskflow.wire.subjects import covers, is_literal

IN = StreamSpec(name="IN", subjects=("cmd.*.*", "resume"), inbound=True, max_age=3600)
OUT = StreamSpec(name="OUT", subjects=("evt.>",), inbound=False, max_age=3600)
WORKER = ConsumerSpec(stream="IN")


@pytest.mark.parametrize(
    "pattern,subject,expected",
    [
        ("a.b", "a.b", True),
        ("a.*", "a.b", True),
        ("a.*", "a", False),
        ("a.*", "a.b.c", False),
        ("a.>", "a.b.c", True),
        ("a.>", "a", False),
        (">", "a", True),
        ("*.b", "a.b", True),
        ("a.*", "a.>", False),
        ("a.>", "a.*", True),
        ("a.>", "a.>", True),
        ("a.b", "a.*", False),
        ("*", ">", False),
    ],
)
def test_a_pattern_covers_subjects_token_by_token(pattern: str, subject: str, expected: bool) -> None:
    assert covers(pattern, subject) is expected


TOKENS = st.lists(st.sampled_from(["a", "b", "*"]), min_size=1, max_size=4)


@given(TOKENS, TOKENS, st.lists(st.sampled_from(["a", "b"]), min_size=1, max_size=4))
def test_what_covers_a_pattern_covers_all_its_subjects(wide: list[str], narrow: list[str], subject: list[str]) -> None:
    pattern, narrower, one = ".".join(wide), ".".join(narrow), ".".join(subject)
    if covers(pattern, narrower) and covers(narrower, one):
        assert covers(pattern, one)


@pytest.mark.parametrize("subject", ["", ".", "a.", ".a", "a..b", "a b", "a\tb", "a.*", "a.>", "a\x00", "a\n", "a" * 1025])
def test_a_malformed_subject_is_not_is_literal(subject: str) -> None:
    assert not is_literal(subject)


@given(st.binary(max_size=40), st.dictionaries(st.text(min_size=1, max_size=5), st.text(max_size=20), max_size=3))
def test_the_size_counts_payload_and_encoded_headers(body: bytes, headers: dict[str, str]) -> None:
    try:
        encoded = b"NATS/1.0\r\n" + b"".join(f"{name}: {value}\r\n".encode() for name, value in headers.items()) + b"\r\n"
    except UnicodeEncodeError:
        assert "text" in (objection("a", body, headers, 10_000) or "")
        return
    size = len(body) + (len(encoded) if headers else 0)
    assert objection("a", body, headers, size) is None
    assert size == 0 or objection("a", body, headers, size - 1) is not None


def test_what_we_create_is_what_we_accept() -> None:
    for stream in (IN, OUT):
        config = stream_rules.stream_config(stream)
        assert stream_rules.stream_objections(stream, config) == []
        assert stream_rules.stream_remarks(stream, config) == []
        assert stream_rules.extended_subjects(stream, config) is None
    for source in (
        WORKER,
        ConsumerSpec(stream="IN", filters=("cmd.a.*",)),
        ConsumerSpec(stream="IN", filters=("re.*",), all_but=("cmd.*.*",)),
    ):
        asked = filters.filters_for(source, ("cmd.*.*", "re.*", "old.topic"))
        config = consumer_rules.consumer_config(source, asked)
        assert consumer_rules.consumer_objections(source, config) == []
        assert consumer_rules.filter_objections(source, config, asked) == []


def test_a_setting_the_server_leaves_out_means_its_default() -> None:
    bare = {"name": "IN", "subjects": list(IN.subjects)}
    named = {line.split(": ")[1].split(" is ")[0] for line in stream_rules.stream_objections(IN, bare)}
    assert named == {"discard", "deny_delete", "deny_purge"}
    assert stream_rules.stream_objections(OUT, bare) == []


def test_an_objection_names_stream_setting_value_and_repair() -> None:
    config = stream_rules.stream_config(IN) | {"discard": "old"}
    expected = "stream IN: discard is old, it must be new; `nats stream edit IN --discard new`"
    assert stream_rules.stream_objections(IN, config) == [expected]


def test_the_outbound_streams_may_discard_old_messages_and_roll_up() -> None:
    config = stream_rules.stream_config(OUT) | {"discard": "old", "allow_rollup_hdrs": True, "deny_purge": False}
    assert stream_rules.stream_objections(OUT, config) == []
    (remark,) = stream_rules.stream_remarks(OUT, config)
    assert "nats stream edit OUT --deny-purge" in remark
    assert stream_rules.stream_objections(OUT, config | {"storage": "memory"})


def test_a_single_filter_counts_as_filters() -> None:
    wanted = ConsumerSpec(stream="IN", filters=("a", "b"))
    assert filters.is_adaptable(wanted, {"filter_subject": "a"}, ("a", "b"), own=False)
    assert consumer_rules.filter_objections(wanted, {"filter_subject": "a"}, ("a", "b"))
    assert not consumer_rules.filter_objections(wanted, {"filter_subjects": ["b", "a"]}, ("a", "b"))


def test_a_consumer_that_takes_everything_is_narrowed_on_the_workers_own_stream_only() -> None:
    wanted = ConsumerSpec(stream="IN", filters=("a", "b"))
    assert [filters.is_adaptable(wanted, {}, ("a", "b"), own=own) for own in (True, False)] == [True, False]
    assert not filters.is_adaptable(wanted, {"filter_subject": "c"}, ("a", "b"), own=True), "somebody has set it, for reasons of theirs"


@pytest.mark.parametrize(
    "subjects,taken",
    [
        (("cmd.*.*", "resume", "reply.*.*"), {"resume", "reply.*.*"}),
        (("cmd.*.*", "resume", "reply.*.*", "no.longer.bound"), {"resume", "reply.*.*", "no.longer.bound"}),
        (("cmd.*.*", "resume", "reply.>"), {"resume", "reply.>"}),
        ((">",), {"resume", "reply.*.*"}),
        ((), {"resume", "reply.*.*"}),
    ],
)
def test_what_is_no_command_is_taken_whoever_has_the_stream_capture_it(subjects: tuple[str, ...], taken: set[str]) -> None:
    """Its publisher is told that it is stored."""
    source = ConsumerSpec(stream="IN", consumer="replies", filters=("resume", "reply.*.*"), all_but=("cmd.*.*",))
    assert set(filters.filters_for(source, subjects)) == taken


@pytest.mark.parametrize(
    "varz,warned",
    [
        ({"jetstream": {"config": {"sync_always": True, "sync_interval": 120_000_000_000}}}, False),
        ({"jetstream": {"config": {"sync_interval": 120_000_000_000}}}, True),
        ({"jetstream": {"config": {}}}, True),
        ({"jetstream": {}}, False),
        ({}, False),
    ],
)
def test_a_server_that_does_not_sync_always_is_warned_of_where_it_is_known(varz: dict[str, Any], warned: bool) -> None:
    assert (monitor.sync_warning(varz) is not None) is warned


@pytest.mark.parametrize(
    "version,refused", [("2.10.22", True), ("2.9.25", True), ("2.10.23", False), ("2.15.1", False), ("2.11.0-RC.1", False), ("dev", False)]
)
def test_servers_that_lose_streams_when_killed_are_refused(version: str, refused: bool) -> None:
    assert (server_version.version_objection(version) is not None) is refused


def test_the_duplicate_window_never_exceeds_the_age_of_messages() -> None:
    short = StreamSpec(name="S", subjects=("s",), inbound=False, max_age=60, duplicate_window=600)
    assert stream_rules.stream_config(short)["duplicate_window"] == 60_000_000_000
