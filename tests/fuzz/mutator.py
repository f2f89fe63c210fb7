"""Spoil good messages: bytes, tokens, numbers, nesting, text, headers and subjects, several times over. Seeded, hence repeatable."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

from msgspec.structs import replace

from tests.fuzz.corpus import Message

_TOKENS = (
    *(
        b"{",
        b"}",
        b"[",
        b"]",
        b'"',
        b",",
        b":",
        b"null",
        b"true",
        b"false",
        b"{}",
        b"[]",
        b'""',
        b"\\",
        b"\\u0000",
        b"\\ud800",
        b"\\udc00x",
    ),
    *(b"NaN", b"-Infinity", b"1e400", b"-0", b"0.1", b"1e-400", b"18446744073709551616", b"-9223372036854775809", b"9" * 400, b"1.0"),
    *(b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\x00", b"\n", b"\r\n", "\u2028\u202e".encode(), "😀".encode(), b"\x1b[2J"),
    *(b'"flow_id":', b'"command_id":', b'"correlation_id":', b'"payload":', b'"kind":', b'"conditions":', b'"accept":', b'"$ref":"#"'),
    *(
        b'{"id":1,"timestamp":1,"topic":1,"source":1,"payload":',
        b'"stream":"S","seq":1',
        b'"0001-01-01T00:00:00-23:59"',
        b'"9999-12-31T23:59:59-23:59"',
    ),
    *(b'"99999999d"', b'"-5s"', b'"external_event"', b'"any_of"', b'"timer"', b'"flow"', b'"all"', b'"pattern":"(a+)+$"', b'"__proto__":1'),
)
_ODD_TEXTS = (
    "",
    "\x00",
    "a\nb",
    "a\r\nX: y",
    "\ud800",
    "é",
    "x" * 70,
    "x" * 300,
    "*",
    ">",
    ".",
    "..",
    " ",
    "\u2028",
    "_INBOX.>",
    "$JS.API.x",
    "٣",
)
_NAMES = ("Nats-Msg-Id", "nats-msg-id", "Correlation-Id", "X-Answer-To", "traceparent", "Taskflow-Reply-To", "Taskflow-Hops", "X")
_NAMES_OF_ERRORS = ("Nats-Service-Error-Code", "Nats-Service-Error", "Nats-Expected-Stream", "Status")
_NUMBER = re.compile(rb"-?[0-9]+(?:\.[0-9]+)?")
_STRING = re.compile(rb'"[^"\\]{0,60}"')
MAX_BODY = 300_000


class Mutator:
    """Makes bad messages out of good ones."""

    def __init__(self, corpus: Sequence[Message], seed: int) -> None:
        self._corpus = corpus
        self._random = random.Random(seed)
        body = (self._flip, self._cut, self._insert, self._swap, self._splice, self._repeat, self._number, self._text, self._nest)
        self._bodies: tuple[Callable[[bytes], bytes], ...] = body

    def next(self) -> Message:
        """Return the next message: mostly with few faults, so that it comes far; now and then ruined, or with none."""
        chance = self._random.random
        message = self._random.choice(self._corpus)
        body = message.body
        for _ in range(int(self._random.expovariate(0.6))):
            body = self._random.choice(self._bodies)(body)[:MAX_BODY]
        message = replace(message, body=body)
        if chance() < 0.25:
            message = replace(message, headers=self._headers(dict(message.headers)))
        if chance() < 0.15:
            message = replace(message, subject=self._subject(message.subject))
        return message

    def _at(self, body: bytes) -> int:
        """Choose a place."""
        return self._random.randrange(len(body) + 1)

    def _flip(self, body: bytes) -> bytes:
        """Flip a bit."""
        if not body:
            return b"\x80"
        at = self._random.randrange(len(body))
        return body[:at] + bytes([body[at] ^ (1 << self._random.randrange(8))]) + body[at + 1 :]

    def _cut(self, body: bytes) -> bytes:
        """Cut the end off, or a piece out."""
        start = self._at(body)
        return body[:start] if self._random.random() < 0.5 else body[:start] + body[start + self._random.randrange(20) :]

    def _insert(self, body: bytes) -> bytes:
        """Insert a token."""
        at = self._at(body)
        return body[:at] + self._random.choice(_TOKENS) + body[at:]

    def _swap(self, body: bytes) -> bytes:
        """Put a token in the place of another JSON string, or of a few bytes."""
        found = list(_STRING.finditer(body))
        token = self._random.choice(_TOKENS)
        if found and self._random.random() < 0.7:
            one = self._random.choice(found)
            return body[: one.start()] + token + body[one.end() :]
        at = self._at(body)
        return body[:at] + token + body[at + len(token) :]

    def _splice(self, body: bytes) -> bytes:
        """Go on as another message does."""
        other = self._random.choice(self._corpus).body
        return body[: self._at(body)] + other[self._at(other) :]

    def _repeat(self, body: bytes) -> bytes:
        """Say a piece again: keys twice, long texts, many members. Rarely beyond the limits, which costs."""
        start = self._at(body)
        piece = body[start : start + self._random.randrange(1, 40)]
        times = 20_000 if self._random.random() < 0.002 else self._random.choice((1, 2, 17, 300))
        return body[:start] + piece * times + body[start:]

    def _number(self, body: bytes) -> bytes:
        """Replace a number."""
        found = list(_NUMBER.finditer(body))
        if not found:
            return self._insert(body)
        one = self._random.choice(found)
        number = self._random.choice((b"0", b"-1", b"1.5", b"2147483648", b"9223372036854775808", b"1e999", b"00", b"1e5", b'"1"', b"true"))
        return body[: one.start()] + number + body[one.end() :]

    def _text(self, body: bytes) -> bytes:
        """Replace a text by an odd one, spelt as JSON spells it or raw."""
        found = list(_STRING.finditer(body))
        if not found:
            return self._insert(body)
        one, text = self._random.choice(found), self._random.choice(_ODD_TEXTS)
        spelt = text.encode("utf-8", "surrogatepass") if self._random.random() < 0.3 else text.encode("unicode_escape")
        return body[: one.start()] + b'"' + spelt.replace(b"\\x", b"\\u00") + b'"' + body[one.end() :]

    def _nest(self, body: bytes) -> bytes:
        """Nest a value deeper, at times far deeper than anybody may."""
        depth = 100_000 if self._random.random() < 0.001 else self._random.choice((1, 3, 30, 31, 32, 33, 200))
        at = self._at(body)
        opening, closing = self._random.choice(((b"[", b"]"), (b'{"a":', b"}"), (b'{"kind":"any_of","conditions":[', b"]}")))
        return body[:at] + opening * depth + b"1" + closing * depth + body[at:]

    def _headers(self, headers: dict[str, str]) -> dict[str, str]:
        """Add, change or drop a header; rarely a thousand of them, or one of 64 KiB."""
        pick = self._random.random()
        if pick < 0.2 and headers:
            headers.pop(self._random.choice(sorted(headers)))
        elif pick < 0.21:
            headers |= {f"X-{n}": "x" for n in range(1000)}
        elif pick < 0.22:
            headers["X"] = "x" * 65_536
        else:
            headers[self._random.choice(_NAMES + _NAMES_OF_ERRORS)] = self._random.choice((*_ODD_TEXTS, "c-1", "7", "cmd-2"))
        return headers

    def _subject(self, subject: str) -> str:
        """Change a token of the subject, add or drop one, or take another message's."""
        tokens = subject.split(".")
        at = self._random.randrange(len(tokens))
        match self._random.randrange(4):
            case 0:
                tokens[at] = self._random.choice(_ODD_TEXTS)
            case 1:
                tokens.insert(at, self._random.choice(("a", "cmd", "reply", "ü", "x" * 64)))
            case 2 if len(tokens) > 1:
                tokens.pop(at)
            case _:
                return self._random.choice(self._corpus).subject
        # The bus hands over U+FFFD for bytes of a subject that are no text (worker/nats_taskflow/bus/nats/direct_delivery.py).
        return ".".join(tokens).encode("utf-8", "replace").decode()
