"""What a body may be: size, depth, keys, duplicates, and the sentence that says what is wrong (RELIABILITY 4, rows 1 to 27)."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nats_taskflow.engine.id_mint import IdMint
from nats_taskflow.errors import FlowError, InvalidRequest, TooDeep, TooLarge
from nats_taskflow.wire import codec, envelope, inbound, json_pointer, limits

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)


@given(JSON)
def test_json_within_the_limits_is_read_as_it_is(value: Any) -> None:
    assert limits.decode_any(json.dumps(value).encode()) == value
    assert limits.decode_any(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()) == value


@given(st.dictionaries(st.text(max_size=8), JSON, max_size=20), st.sampled_from([None, (",", ":")]), st.booleans())
def test_objects_without_duplicates_are_never_refused_as_duplicates(value: dict[str, Any], separators: Any, ascii_only: bool) -> None:
    assert limits.decode_object(json.dumps(value, separators=separators, ensure_ascii=ascii_only).encode()) == value


@given(st.text(max_size=6), JSON, JSON, st.booleans())
def test_a_key_given_twice_is_always_refused(key: str, first: Any, second: Any, spaced: bool) -> None:
    gap = " " if spaced else ""
    body = f'{{{json.dumps(key)}:{gap}{json.dumps(first)},"other":1,{json.dumps(key, ensure_ascii=False)}:{json.dumps(second)}}}'
    with pytest.raises(InvalidRequest, match="twice"):
        limits.decode_object(body.encode())


def test_a_key_given_twice_in_different_spellings_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="'goal' is given twice") as caught:
        limits.check(rb'{"goal":"a","go\u0061l":1e5}')
    assert caught.value.details["path"] == "/goal"


def test_a_key_given_twice_below_the_top_is_the_senders_own_business() -> None:
    assert limits.decode_object(b'{"patch":{"a":1,"a":2}}') == {"patch": {"a": 2}}


def nested(depth: int) -> bytes:
    return b'{"a":' * (depth - 1) + b"{}" + b"}" * (depth - 1)


@pytest.mark.parametrize("depth", [1, 2, 31, 32])
def test_nesting_up_to_the_limit_is_taken(depth: int) -> None:
    assert isinstance(limits.decode_object(nested(depth)), dict)


@pytest.mark.parametrize("body", [nested(33), nested(1_000), b"[" * 33 + b"]" * 33, b"[" * 100_000 + b"]" * 100_000, b'{"a":' * 40_000])
def test_deeper_nesting_is_refused(body: bytes) -> None:
    for read in (limits.decode_any, limits.check):
        with pytest.raises(TooDeep):
            read(body)


def test_many_brackets_side_by_side_are_not_deep() -> None:
    assert limits.decode_any(b"[" + b"[]," * 1000 + b"{}]")


def test_a_body_of_exactly_the_limit_is_taken_and_one_byte_more_is_not() -> None:
    body = b'{"a":"%b"}' % (b"x" * (limits.MAX_BYTES - 8))
    assert len(body) == limits.MAX_BYTES
    assert limits.decode_object(body)
    with pytest.raises(TooLarge) as caught:
        limits.check(body + b" ")
    assert caught.value.details == {"size": limits.MAX_BYTES + 1, "limit": limits.MAX_BYTES}


def test_size_is_checked_before_anything_is_decoded() -> None:
    with pytest.raises(TooLarge):
        limits.decode_any(b"\xff" * (limits.MAX_BYTES + 1))


@pytest.mark.parametrize("read", [limits.decode_any, limits.check])
def test_keys_are_bounded_in_number_and_length(read: Any) -> None:
    allowed = {"a": {str(n): 1 for n in range(limits.MAX_KEYS - 1)}}
    read(json.dumps(allowed).encode())
    with pytest.raises(InvalidRequest, match="10001 keys"):
        read(json.dumps(allowed | {"b": 1}).encode())
    with pytest.raises(InvalidRequest, match="keys"):
        read(json.dumps({str(n): 1 for n in range(25_000)}, separators=(",", ":")).encode())
    read(json.dumps({"a": {"k" * 1024: 1}}).encode())
    with pytest.raises(InvalidRequest, match="longer than 1024"):
        read(json.dumps({"a": {"k" * 1025: 1}}).encode())


@pytest.mark.parametrize(
    "body, sentence",
    [
        (b"", "the body is empty"),
        (b" \n\t ", "the body is empty"),
        (b'{"a":1', "ends too early"),
        (b'{"a":1}{}', "trailing characters"),
        (b'{"a":1} x', "trailing characters"),
        (b'\xef\xbb\xbf{"a":1}', "is not JSON"),
        (b'{"a":"\xc0\xaf"}', "not valid UTF-8"),
        (b'{"a":"\xff"}', "not valid UTF-8"),
        (b'{"a":"\xed\xa0\x80"}', "not valid UTF-8"),
        (b'{"a":NaN}', "NaN is no JSON number"),
        (b'{"a":-Infinity}', "-Infinity is no JSON number"),
        (b'{"a":1e400}', "too large"),
        (b'{"a":' + b"9" * 5000 + b"}", "too large"),
        (b'{"a":"\\ud800"}', "half of a surrogate pair"),
        (b'{"a":"\\udc00 and more text behind it"}', "half of a surrogate pair"),
        (b'{"a":"\x01"}', "invalid character"),
        (b"{'a':1}", "is not JSON"),
        (b'{"a":01}', "is not JSON"),
        (b'{"a":1,}', "is not JSON"),
        (b'{"a":1 /* b */}', "is not JSON"),
        (b"\x00", "is not JSON"),
        (b"[1]", "must be a JSON object"),
        (b'"text"', "must be a JSON object"),
        (b"1", "must be a JSON object"),
        (b"null", "must be a JSON object"),
    ],
)
def test_what_is_no_message_is_refused_with_a_clear_sentence(body: bytes, sentence: str) -> None:
    with pytest.raises(limits.Malformed, match=sentence) as caught:
        limits.decode_object(body)
    assert caught.value.code == "invalid_request"
    assert caught.value.message.isprintable()


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    for read in (limits.decode_any, limits.decode_object, limits.check, envelope.open_request, envelope.open_value):
        with suppress(FlowError):
            read(body)


ENVELOPE = {"id": "e-1", "timestamp": "2026-01-01T00:00:00Z", "topic": "t", "source": "s", "session_id": None, "payload": {"a": 1}}


@pytest.mark.parametrize("given_session", ["present", "missing"])
def test_the_reference_envelope_is_taken_off(given_session: str) -> None:
    wrapped = {key: value for key, value in ENVELOPE.items() if given_session == "present" or key != "session_id"}
    assert envelope.open_value(json.dumps(wrapped).encode()) == ({"a": 1}, "e-1")
    opened = envelope.open_request(json.dumps(wrapped, indent=1).encode())
    assert json.loads(opened.body) == {"a": 1}


@pytest.mark.parametrize("change", [{"extra": 1}, {"session": 1, "session_id": None}])
def test_what_only_resembles_the_envelope_is_left_alone(change: dict[str, Any]) -> None:
    body = json.dumps(ENVELOPE | change).encode()
    assert envelope.open_value(body) == (ENVELOPE | change, None)
    assert envelope.open_request(body).body == body


def test_a_key_given_twice_inside_the_envelope_is_refused() -> None:
    body = json.dumps(ENVELOPE).replace('{"a": 1}', '{"a": 1, "a": 2}').encode()
    for read in (envelope.open_request, envelope.open_value):
        with pytest.raises(InvalidRequest, match="twice"):
            read(body)


class Counted:
    """A decoder that counts the bytes it is given."""

    def __init__(self, decoder: msgspec.json.Decoder[Any], counts: list[int]) -> None:
        self._decoder = decoder
        self._counts = counts

    def decode(self, body: bytes) -> Any:
        self._counts.append(len(body))
        return self._decoder.decode(body)


FLOW = "01931c5e-7b2a-7c3d-9e4f-0a1b2c3d4e5f"
WHOLE = json.dumps({"flow_id": FLOW, "patch": {"text": 'x\n"' * 40_000}}).encode()
SPOILT = {
    "ends too early": WHOLE[:-1],
    "two commas": WHOLE[:-1] + b",,}",
    "NaN": WHOLE[:-2] + b', "n": NaN}}',
    "half a pair": WHOLE[:-2] + b', "n": "\\ud800"}}',
    "no UTF-8": WHOLE[:-2] + b', "n": "\xff"}}',
    "a key twice": WHOLE[:-1] + b', "flow_id": "x"}',
    "an unknown field": WHOLE[:-1] + b', "flow": "x"}',
    "a wrong type": WHOLE[:-1] + b', "current_step": 7}',
    "too deep": WHOLE[:-2] + b', "n": ' + b"[" * 40 + b"]" * 40 + b"}}",
    "a number out of range": WHOLE[:-2] + b', "n": 1e999}}',
}


@pytest.mark.parametrize("headers", [{"Nats-Msg-Id": "one"}, {}], ids=["with an id", "without"])
@pytest.mark.parametrize("spoilt", SPOILT)
def test_a_large_body_is_not_read_more_often_to_be_refused_than_to_be_accepted(
    monkeypatch: pytest.MonkeyPatch, spoilt: str, headers: dict[str, str]
) -> None:
    counts: list[int] = []
    for name in ("_ANY", "_TOP"):
        monkeypatch.setattr(limits, name, Counted(getattr(limits, name), counts))
    assert isinstance(codec.read_command("kate", "advance", WHOLE, headers, IdMint(), require_id=False), inbound.Inbound)
    accepted, counts[:] = sum(counts), []
    assert isinstance(codec.read_command("kate", "advance", SPOILT[spoilt], headers, IdMint(), require_id=False), inbound.Unusable)
    assert sum(counts) <= accepted + 1024
    assert not hasattr(limits, "json"), "the slow parser is not even there"


KEYS = st.sampled_from(["a", "b", "", 'q"', "\\", "é", "\n", "a b", "{", ","])
VALUES = st.sampled_from(["1", "12", '"x"', '"x,y"', "{}", '{"a": 1, "a": 2}', "[1, 2]", "null", '"\\"}"', "-0.5e3"])
BLANKS = st.sampled_from(["", " ", "\n\t", "  "])


@given(st.lists(st.tuples(KEYS, VALUES, BLANKS, BLANKS), max_size=24), st.booleans())
def test_a_key_that_is_given_twice_is_found_however_it_is_written(fields: list[tuple[str, str, str, str]], ascii_only: bool) -> None:
    pairs = (f"{one}{json.dumps(key, ensure_ascii=ascii_only)}{two}:{one}{value}{two}" for key, value, one, two in fields)
    body = ("{" + ",".join(pairs) + "}").encode()
    keys = [key for key, *_ in fields]
    if len(set(keys)) == len(keys):
        assert list(limits.top_level(body)) == keys
    else:
        with pytest.raises(InvalidRequest, match="twice") as caught:
            limits.top_level(body)
        assert keys.count(json_pointer.parse(caught.value.details["path"])[0]) > 1
