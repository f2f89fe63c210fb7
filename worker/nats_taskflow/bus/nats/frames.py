"""Spell messages in the NATS client protocol, and read their headers (docs.nats.io, "Client Protocol"; headers: ADR-4).

What is written is byte for byte what nats-py writes, whose `publish` is a coroutine with its own checks for each message.
"""

from __future__ import annotations

import re
from functools import lru_cache

from nats_taskflow.bus.port import Headers
from nats_taskflow.wire.headers import MOST_HEADERS, UNREAD

STATUS, DESCRIPTION = "Status", "Description"
"""The names under which `read_headers` gives the status line of a message that the server itself wrote."""

_VERSION = b"NATS/1.0"
# Whoever could put one of these into a subject would write protocol of his own.
_BREAK = re.compile(r"[ \t\r\n]")
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_NO_NAME = re.compile(rb"[\x09-\x0d\x1c-\x20\x80-\xff]")
_STATUS_LENGTH = 3
_LONGEST_NAME = 256
_FIRST_FEW = 32


def encoded(subject: str, body: bytes, reply: str, headers: Headers) -> bytes:
    """Return the `PUB` or `HPUB` frame. Raises `ValueError` for a subject or header that cannot be sent."""
    if not subject or _BREAK.search(subject) or (reply and _BREAK.search(reply)):
        raise ValueError(f"{subject!r} or the reply subject {reply!r} cannot be written")
    if not headers:
        return b"PUB %b %b %d\r\n%b\r\n" % (subject.encode(), reply.encode(), len(body), body)
    block = _block(headers)
    return b"HPUB %b %b %d %d\r\n%b%b\r\n" % (subject.encode(), reply.encode(), len(block), len(block) + len(body), block, body)


def read_headers(raw: bytes) -> dict[str, str]:
    """Read a header block; what is no text becomes U+FFFD, and a name that is none is passed over.

    Of two headers with one name the first counts, as with the clients of other languages; nats-py would have the last. Of more than
    `MOST_HEADERS` the first few are read, which usually name the message: `UNREAD` says so, and `limits.check_headers` refuses it.
    """
    lines = raw.split(b"\r\n", MOST_HEADERS + 1)
    found = _status(lines[0][len(_VERSION) :]) if lines[0] != _VERSION else {}
    rest = lines.pop() if len(lines) > MOST_HEADERS + 1 else b""
    if rest.strip():
        found[UNREAD] = str(len(raw))
        del lines[_FIRST_FEW + 1 :]
    for line in lines[1:]:
        name, colon, value = line.partition(b":")
        if colon and (known := _read_name(name)) is not None:
            found.setdefault(known, value.strip().decode("utf-8", "replace"))
    return found


def _block(headers: Headers) -> bytes:
    """Spell headers; a nameless one is left out, and a line break in a value becomes a space."""
    lines = [_VERSION]
    for name, value in headers.items():
        if prefix := _written_name(name):
            kept = value.strip()
            if "\r" in kept or "\n" in kept:
                kept = kept.replace("\r", " ").replace("\n", " ")
            lines.append(prefix + kept.encode())
    return b"\r\n".join(lines) + b"\r\n\r\n"


@lru_cache(maxsize=256)
def _written_name(name: str) -> bytes:
    """Return `name: `, or nothing for a blank name. Raises `ValueError` for what is no token."""
    token = name.strip()
    if token and not _NAME.fullmatch(token):
        raise ValueError(f"{name!r} is no name of a header")
    return f"{token}: ".encode() if token else b""


@lru_cache(maxsize=256)
def _read_name(name: bytes) -> str | None:
    """Return a header's name, or None for what is none, or longer than any that counts: names are kept."""
    token = name.strip()
    return None if len(token) > _LONGEST_NAME or _NO_NAME.search(token) else token.decode("ascii")


def _status(line: bytes) -> dict[str, str]:
    """Read what stands behind the version: ` 408 Request Timeout`."""
    text = line.decode("utf-8", "replace")[1:]
    status, description = text[:_STATUS_LENGTH].strip(), text[_STATUS_LENGTH + 1 :]
    found = {STATUS: status} if status.isdigit() else {}
    return {**found, DESCRIPTION: description} if description else found
