"""Use an agent of the Synadia Agent Protocol (0.3) as a delegate.

It is prompted, and the chunks that it streams become one answer. The protocol: a request `{"prompt": …}` on
`agents.prompt.<agent>.<owner>.<session>` is answered on its reply subject by messages `{"type": "response" | "status" | "query", "data":
…}`, and an empty message ends it. It is core NATS: what is lost is lost, so a silence that is too long ends the prompt with an error; the
flow's own timeout bounds everything.

    ask = synadia_agent_protocol.handler(flows.transport, "agents.prompt.researcher.acme.main")
    async with serve_delegate("svc.research", ask, on=flows): ...
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from nats_taskflow.client.delegate_messages import DelegateCall, DelegateError
from nats_taskflow.client.transport import Transport, TransportError, TransportMessage
from nats_taskflow.wire.headers import SERVICE_ERROR, SERVICE_ERROR_CODE, find

QueryHandler = Callable[[str], Awaitable[str]]
"""Answers a question of the agent (its `prompt`) with text."""


class Chunk(msgspec.Struct):
    """One message of the stream.

    `data` is text, or an object with `text`; of a `query` an object with `prompt` and `reply_subject`.
    """

    type: str
    data: Any = None


class PromptAnswer(msgspec.Struct, frozen=True):
    """An agent's answer: its `response` chunks as one text, and how many there were."""

    text: str
    chunks: int


def handler(
    transport: Transport, subject: str, *, silence: float = 60.0, answering: QueryHandler | None = None
) -> Callable[[DelegateCall], Awaitable[PromptAnswer]]:
    """Return a handler for `serve_delegate` that prompts the agent on `subject`.

    The prompt is the request's payload: text, or an object with `prompt`.
    """

    async def ask(request: DelegateCall) -> PromptAnswer:
        return await prompt(transport, subject, request.payload, silence=silence, answering=answering)

    return ask


async def prompt(
    transport: Transport, subject: str, payload: Any, *, silence: float = 60.0, answering: QueryHandler | None = None
) -> PromptAnswer:
    """Prompt an agent and collect its answer until the terminator.

    `payload`: text, an object with `prompt` (and `attachments`), which is sent as it is, or any JSON value. `silence`: after so many
    seconds without a chunk the prompt is given up; status chunks count. `answering` answers its queries. Raises `DelegateError`: with the
    agent's own code and message, `503` where nobody listens or nothing comes, `422` for a query that nobody answers here, `502` for what
    is no chunk.
    """
    chunks: asyncio.Queue[TransportMessage] = asyncio.Queue()
    inbox = await transport.open_inbox(chunks.put_nowait)
    parts: list[str] = []
    try:
        await transport.tell(subject, _request(payload), reply=f"{inbox.subject}.chunk")
        while True:
            chunk = await _next(chunks, silence, subject)
            if chunk is None:
                return PromptAnswer("".join(parts), len(parts))
            if chunk.type == "response":
                parts.append(_text(chunk.data))
            elif chunk.type == "query":
                await _answer(transport, chunk.data, answering)
    except TransportError as failed:
        raise DelegateError("503", str(failed)) from failed
    finally:
        await inbox.close()


async def _next(chunks: asyncio.Queue[TransportMessage], silence: float, subject: str) -> Chunk | None:
    """Return the next chunk, None at the end. Raises `DelegateError`."""
    try:
        async with asyncio.timeout(silence):
            message = await chunks.get()
    except TimeoutError:
        raise DelegateError("503", f"{subject} said nothing for {silence:g} s") from None
    code = find(message.headers, SERVICE_ERROR_CODE)
    if code is not None:
        raise DelegateError(code, find(message.headers, SERVICE_ERROR) or "the agent failed")
    if find(message.headers, "Status") == "503":
        raise DelegateError("503", f"nobody listens on {subject}")
    if not message.body:
        return None
    try:
        return msgspec.json.decode(message.body, type=Chunk)
    except (ValueError, RecursionError):
        raise DelegateError("502", f"{subject} sent what is no chunk of the protocol") from None


async def _answer(transport: Transport, query: Any, answering: QueryHandler | None) -> None:
    """Answer a query. Raises `DelegateError` where nobody can."""
    fields = query if isinstance(query, dict) else {}
    to, question = fields.get("reply_subject"), str(fields.get("prompt", ""))
    if answering is None or not isinstance(to, str):
        raise DelegateError("422", f"the agent asks back, and nobody answers here: {question}")
    await transport.tell(to, msgspec.json.encode({"prompt": await answering(question)}))


def _request(payload: Any) -> bytes:
    if isinstance(payload, dict) and isinstance(payload.get("prompt"), str):
        return msgspec.json.encode(payload)
    return msgspec.json.encode({"prompt": payload if isinstance(payload, str) else msgspec.json.encode(payload).decode()})


def _text(data: Any) -> str:
    if isinstance(data, dict) and isinstance(data.get("text"), str):
        return str(data["text"])
    return data if isinstance(data, str) else msgspec.json.encode(data).decode()
