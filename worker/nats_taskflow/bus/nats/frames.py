"""Encode messages in the NATS client protocol, and read their headers.

See docs.nats.io, "Client Protocol"; headers: ADR-4. The bytes are those that nats-py writes; its `publish` is a coroutine with checks of
its own for each message.
"""

from __future__ import annotations

import re
from functools import lru_cache

from nats_taskflow.wire.headers import MOST_HEADERS, UNREAD, Headers

STATUS, DESCRIPTION = "Status", "Description"
"""The names under which `read_headers` returns the status line of the server's own messages."""

_VERSION = b"NATS/1.0"
# Whoever could put one of these into a subject could write protocol lines.
_BREAK = re.compile(r"[ \t\r\n]")
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_NO_NAME = re.compile(rb"[\x09-\x0d\x1c-\x20\x80-\xff]")
_STATUS_LENGTH = 3
_LONGEST_NAME = 256
_FIRST_FEW = 32


def encode_frame(subject: str, body: bytes, reply: str, headers: Headers) -> bytes:
    """Return the `PUB` or `HPUB` frame.

    Raises `ValueError` for a subject or header that cannot be sent.
    """
    if not subject or _BREAK.search(subject) or (reply and _BREAK.search(reply)):
        raise ValueError(f"{subject!r} or the reply subject {reply!r} cannot be written")
    if not headers:
        return b"PUB %b %b %d\r\n%b\r\n" % (subject.encode(), reply.encode(), len(body), body)
    block = _block(headers)
    return b"HPUB %b %b %d %d\r\n%b%b\r\n" % (subject.encode(), reply.encode(), len(block), len(block) + len(body), block, body)


def read_headers(raw: bytes) -> dict[str, str]:
    """Read a header block. Invalid UTF-8 becomes U+FFFD; invalid names are skipped.

    Of two headers with one name, the first counts, as in the clients of other languages; in nats-py it is the last. Of more than
    `MOST_HEADERS`, only the first few are read, which usually name the message. `UNREAD` says so, and `limits.check_headers` refuses it.
    """
    lines = raw.split(b"\r\n", MOST_HEADERS + 1)
    headers = _status(lines[0][len(_VERSION) :]) if lines[0] != _VERSION else {}
    rest = lines.pop() if len(lines) > MOST_HEADERS + 1 else b""
    if rest.strip():
        headers[UNREAD] = str(len(raw))
        del lines[_FIRST_FEW + 1 :]
    for line in lines[1:]:
        name, colon, value = line.partition(b":")
        if colon and (token := _read_name(name)) is not None:
            headers.setdefault(token, value.strip().decode("utf-8", "replace"))
    return headers


def _block(headers: Headers) -> bytes:
    """Return the header block.

    A header without a name is left out. A line break in a value becomes a space.
    """
    lines = [_VERSION]
    for name, value in headers.items():
        if prefix := _written_name(name):
            text = value.strip()
            if "\r" in text or "\n" in text:
                text = text.replace("\r", " ").replace("\n", " ")
            lines.append(prefix + text.encode())
    return b"\r\n".join(lines) + b"\r\n\r\n"


@lru_cache(maxsize=256)
def _written_name(name: str) -> bytes:
    """Return `name: `, or nothing for a blank name.

    Raises `ValueError` for a name that is not a token.
    """
    token = name.strip()
    if token and not _NAME.fullmatch(token):
        raise ValueError(f"{name!r} is no name of a header")
    return f"{token}: ".encode() if token else b""


@lru_cache(maxsize=256)
def _read_name(name: bytes) -> str | None:
    # None: it is invalid, or longer than any we read (names are cached).
    token = name.strip()
    return None if len(token) > _LONGEST_NAME or _NO_NAME.search(token) else token.decode("ascii")


def _status(line: bytes) -> dict[str, str]:
    """Read the status behind the version: ` 408 Request Timeout`."""
    text = line.decode("utf-8", "replace")[1:]
    status, description = text[:_STATUS_LENGTH].strip(), text[_STATUS_LENGTH + 1 :]
    headers = {STATUS: status} if status.isdigit() else {}
    return {**headers, DESCRIPTION: description} if description else headers
