"""Spell the part of NATS key-value buckets (ADR-8) that the answer cache needs."""

from __future__ import annotations

import msgspec

from nats_taskflow.client.transport import NoAnswer

_NO_MESSAGE, _NO_STREAM = 10037, 10059


class _StoredMessage(msgspec.Struct):
    """A message as the stream keeps it; headers are a block of bytes."""

    data: bytes = b""
    hdrs: bytes = b""


class _Error(msgspec.Struct):
    """Why there is no message."""

    err_code: int = 0
    description: str = ""


class _Answer(msgspec.Struct):
    """The stream's answer."""

    message: _StoredMessage | None = None
    error: _Error | None = None


def stream_name(bucket: str) -> str:
    """Return the name of the stream behind a bucket."""
    return f"KV_{bucket}"


def key_subject(bucket: str, key: str) -> str:
    """Return the subject that stands for a key."""
    return f"$KV.{bucket}.{key}"


def read_subject(bucket: str) -> str:
    """Return the subject to read values on: that of the stream's leader.

    A replica may lag, and not every bucket allows direct reads.
    """
    return f"$JS.API.STREAM.MSG.GET.{stream_name(bucket)}"


def read_request(bucket: str, key: str) -> bytes:
    """Return the body of a read request."""
    return msgspec.json.encode({"last_by_subj": key_subject(bucket, key)})


def read_value(answer: bytes, bucket: str) -> bytes | None:
    """Decode the answer: the value, or None where there is none (any more).

    Raises `NoAnswer`, with `nobody` where there is no bucket.
    """
    reply = msgspec.json.decode(answer, type=_Answer)
    if reply.message is not None:
        return None if b"KV-Operation" in reply.message.hdrs else reply.message.data
    error = reply.error or _Error(description="an answer without a message")
    if error.err_code == _NO_MESSAGE:
        return None
    raise NoAnswer(f"the bucket {bucket} was not read: {error.description}", nobody=error.err_code == _NO_STREAM)
