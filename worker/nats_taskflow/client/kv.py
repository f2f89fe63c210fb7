"""Key-value buckets of NATS (ADR-8), as far as answers need them: one value for each key, the last one, for a while."""

from __future__ import annotations

import msgspec

from nats_taskflow.client.transport import NoAnswer

_NO_MESSAGE, _NO_STREAM = 10037, 10059


class _Kept(msgspec.Struct):
    """A message as the stream keeps it; headers are a block of bytes."""

    data: bytes = b""
    hdrs: bytes = b""


class _Error(msgspec.Struct):
    """Why there is none."""

    err_code: int = 0
    description: str = ""


class _Answer(msgspec.Struct):
    """What the stream says."""

    message: _Kept | None = None
    error: _Error | None = None


def stream_name(bucket: str) -> str:
    """Return the stream that is the bucket."""
    return f"KV_{bucket}"


def key_subject(bucket: str, key: str) -> str:
    """Return the subject that is the key."""
    return f"$KV.{bucket}.{key}"


def read_subject(bucket: str) -> str:
    """Return where values are asked for: of the stream's leader, for a copy may lag behind, and not every bucket has direct answers."""
    return f"$JS.API.STREAM.MSG.GET.{stream_name(bucket)}"


def read_request(bucket: str, key: str) -> bytes:
    """Return what is asked there."""
    return msgspec.json.encode({"last_by_subj": key_subject(bucket, key)})


def read_value(answer: bytes, bucket: str) -> bytes | None:
    """Read the answer: the value, None where there is none (any more). Raises `NoAnswer`, with `nobody` where there is no bucket."""
    said = msgspec.json.decode(answer, type=_Answer)
    if said.message is not None:
        return None if b"KV-Operation" in said.message.hdrs else said.message.data
    why = said.error or _Error(description="an answer without a message")
    if why.err_code == _NO_MESSAGE:
        return None
    raise NoAnswer(f"the bucket {bucket} was not read: {why.description}", nobody=why.err_code == _NO_STREAM)
