"""What we write in the NATS protocol is what nats-py writes, byte for byte; what we read of headers is what it reads."""

from __future__ import annotations

import asyncio
from unittest.mock import patch

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from nats.aio.client import Client
from nats.errors import BadHeaderError

from nats_taskflow.bus.nats import frames
from nats_taskflow.bus.nats.client import PatchedClient
from nats_taskflow.bus.nats.frames import encode_frame, read_headers
from nats_taskflow.wire.headers import MOST_HEADERS, UNREAD

SUBJECTS = st.text(st.characters(exclude_characters=" \t\r\n", exclude_categories=["Cs"]), min_size=1)
NAMES = st.text(st.sampled_from("aZ0-_.!"), min_size=1) | st.sampled_from(["", "  ", " padded ", "content-type"])
VALUES = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(["a\r\nb", " \n padded \r ", "\x1c"])
NOISE = st.lists(st.binary(max_size=12) | st.sampled_from([b"a: b", b"A:b:c", b"\xff: \xff", b" x y: 1", b":", b"", b"\x1c: \x1c"]))


class Written(Client):
    """Keeps what nats-py would write."""

    async def _send_command(self, cmd: bytes, priority: bool = False) -> None:
        self.frame = bytes(cmd)


def nats_frame(subject: str, body: bytes, reply: str, headers: dict[str, str]) -> bytes:
    client = Written()
    asyncio.run(client._send_publish(subject, reply, body, len(body), headers or None))
    return client.frame


@given(SUBJECTS, st.binary(), st.just("") | SUBJECTS, st.dictionaries(NAMES, VALUES, max_size=4))
@example("a.b", b"", "", {})
@example("a.b", b"x", "_INBOX.1", {"Nats-Msg-Id": "f:1", "traceparent": "00-ab"})
@example("a.b", b"x", "", {"": "all of them without a name"})
def test_a_frame_is_what_nats_py_writes(subject: str, body: bytes, reply: str, headers: dict[str, str]) -> None:
    assert encode_frame(subject, body, reply, headers) == nats_frame(subject, body, reply, headers)


@pytest.mark.parametrize("name", ["a b", "a:b", "é", "a\r\nb"])
def test_a_header_name_that_nats_py_refuses_is_refused(name: str) -> None:
    with pytest.raises(BadHeaderError):
        nats_frame("a", b"", "", {name: "1"})
    with pytest.raises(ValueError, match="no name of a header"):
        encode_frame("a", b"", "", {name: "1"})


@pytest.mark.parametrize("subject, reply", [("", ""), ("a b", ""), ("a", "b\r\nPUB c  0\r\n"), ("a\n", ""), ("a", "\t")])
def test_nobody_can_write_protocol_of_his_own_by_a_subject(subject: str, reply: str) -> None:
    with pytest.raises(ValueError, match="cannot be written"):
        encode_frame(subject, b"", reply, {})


@given(NOISE)
@example([b"Correlation-Id: first", b"correlation-id: other", b"Correlation-Id: second"])
def test_headers_are_read_as_nats_py_reads_them_but_of_two_with_one_name_the_first_counts(lines: list[bytes]) -> None:
    """As with the clients of Go, JavaScript and Rust."""
    block, backwards = (b"".join(line + b"\r\n" for line in order) + b"\r\n" for order in (lines, lines[::-1]))
    assert read_headers(b"NATS/1.0\r\n" + block) == Client._parse_header_lines(backwards)


@given(NOISE)
def test_requests_and_agents_read_headers_as_deliveries_are_read(lines: list[bytes]) -> None:
    raw = b"NATS/1.0\r\n" + b"".join(line + b"\r\n" for line in lines) + b"\r\n"
    assert (asyncio.run(PatchedClient()._process_headers(raw)) or {}) == read_headers(raw)


@pytest.mark.parametrize(
    "raw",
    [
        b"NATS/1.0 503\r\n\r\n",
        b"NATS/1.0 408 Request Timeout\r\nNats-Pending-Messages: 7\r\nNats-Pending-Bytes: 0\r\n\r\n",
        b"NATS/1.0 409 Consumer Deleted\r\n\r\n",
        b"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: 1016\r\n\r\n",
        b"NATS/1.0 abc what\r\n\r\n",
    ],
)
def test_a_status_is_read_as_nats_py_reads_it(raw: bytes) -> None:
    theirs = asyncio.run(Client()._process_headers(raw)) or {}
    # nats-py reads the status line once more as a header where others follow it.
    assert read_headers(raw) == {name: value for name, value in theirs.items() if not name.startswith("NATS/")}


@given(st.binary())
def test_no_header_block_is_too_broken_to_be_read(raw: bytes) -> None:
    assert all(isinstance(name, str) for name in read_headers(raw))


def block(number: int) -> bytes:
    return b"NATS/1.0\r\n" + b"".join(b"H-%d: x\r\n" % n for n in range(number)) + b"\r\n"


def test_as_many_headers_as_are_allowed_are_read_whole() -> None:
    assert len(read_headers(block(MOST_HEADERS))) == MOST_HEADERS


@pytest.mark.parametrize("number", [MOST_HEADERS + 1, 100_000])
def test_of_too_many_headers_the_first_few_are_read_and_it_is_said(number: int) -> None:
    with patch.object(frames, "_read_name", wraps=frames._read_name) as read:
        found = read_headers(block(number))
    assert int(found.pop(UNREAD)) == len(block(number))
    assert read.call_count == len(found) <= MOST_HEADERS
    assert found.items() <= read_headers(block(MOST_HEADERS)).items()


def test_a_name_that_is_longer_than_any_that_counts_is_passed_over_and_not_kept() -> None:
    kept = frames._read_name.cache_info().currsize
    assert read_headers(b"NATS/1.0\r\n" + b"n" * 60_000 + b": x\r\nA: 1\r\n\r\n") == {"A": "1"}
    assert frames._read_name.cache_info().currsize <= kept + 2
