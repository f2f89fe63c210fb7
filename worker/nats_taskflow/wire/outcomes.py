"""Encode answers: outcomes of commands, answers to queries, headers of errors.

See CONTRACT 3. A repeat of a command gets the bytes of its first answer. They are stored, or, where they are large, what they can be made
of (SEMANTICS 6).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import UNSET
from msgspec.structs import replace

from nats_taskflow.errors import FlowError, error_of
from nats_taskflow.flow.decision import OutcomeName
from nats_taskflow.flow.model import Flow, FlowEvent, FlowStep
from nats_taskflow.wire import answers as shapes
from nats_taskflow.wire.cursors import PAGE_BYTES, cut_page
from nats_taskflow.wire.headers import SERVICE_ERROR, SERVICE_ERROR_CODE, one_line

_ENCODER = msgspec.json.Encoder(enc_hook=str)  # details of an error may name anything; an outcome must never fail to encode
_REFUSED = msgspec.json.Decoder(shapes.RefusedAnswer)
_EFFECTIVE: frozenset[OutcomeName] = frozenset({"applied", "resumed", "progressed", "held", "duplicate"})


def fit(answer: bytes, limit: int) -> bytes:
    """Encode an answer, over the limit without its states and payloads.

    What has happened must not look like an error.
    """
    if len(answer) <= limit:
        return answer
    document = msgspec.json.decode(answer)
    parts = [document["flow"]] if "flow" in document else document.get("flows") or document.get("events", ())
    for field, omitted in HEAVY.items():
        for part in parts:
            if part.pop(field, None) is not None:
                part[omitted] = document[omitted] = True
        if len(shorter := _ENCODER.encode(document)) <= limit:
            return shorter
    return answer


HEAVY = {"payload": "payload_omitted", "state": "state_omitted", "wait": "state_omitted", "goal": "state_omitted"}
"""What is left out of an event or a flow, in this order, until the answer fits, and the field that says so."""


def flow_json(flow: Flow) -> dict[str, Any]:
    """Return FLOW of CONTRACT 3 as a JSON object."""
    document: dict[str, Any] = msgspec.to_builtins(shapes.show_flow(flow))
    return document


def encode_applied(
    flow: Flow,
    step: FlowStep | None = None,
    outcome: OutcomeName = "applied",
    *,
    cancelled_children: shapes.CancelledChildren | None = None,
) -> bytes:
    """Encode the outcome of a command that took effect."""
    return _ENCODER.encode(
        shapes.AppliedAnswer(
            outcome=outcome,
            flow=shapes.show_flow(flow),
            step=shapes.show_step(step) if step is not None else UNSET,
            cancelled_children=cancelled_children if cancelled_children is not None else UNSET,
        )
    )


KEPT_BYTES = 4096
"""A state, wait or result of more bytes is not stored with the outcome."""
_APPLIED = msgspec.json.Decoder(shapes.AppliedAnswer)


def encode_for_storage(flow: Flow, step: FlowStep | None = None, *, cancelled_children: shapes.CancelledChildren | None = None) -> bytes:
    """Encode the outcome of a command that took effect for storage.

    It is whole, or light: without its heavy parts.
    """
    whole = encode_applied(flow, step, cancelled_children=cancelled_children)
    if len(whole) <= KEPT_BYTES:
        return whole
    flow_shown = shapes.show_flow(flow)
    heavy: dict[str, Any] = {name: UNSET for name in ("state", "wait") if _is_heavy(getattr(flow_shown, name))}
    is_step_heavy = step is not None and _is_heavy(step.result_json)
    if not heavy and not is_step_heavy:
        return whole
    return _ENCODER.encode(
        shapes.AppliedAnswer(
            flow=replace(flow_shown, state_omitted=True, **heavy),
            step=UNSET if step is None else shapes.show_step(replace(step, result_json=None) if is_step_heavy else step),
            cancelled_children=cancelled_children if cancelled_children is not None else UNSET,
            state_omitted=True,
        )
    )


def read_light(result: bytes) -> shapes.AppliedAnswer | None:
    """Return a stored outcome that is light, or None where it is whole."""
    return _APPLIED.decode(result) if result.endswith(_OMITTED) else None


_OMITTED = b'"state_omitted":true}'


def encode_whole(outcome: shapes.AppliedAnswer, flow: Flow, step: FlowStep | None) -> bytes:
    """Encode a light outcome with its whole flow and observed run.

    These are the bytes that `encode_applied` made of them.
    """
    step_shown = shapes.show_step(step) if step is not None else UNSET
    return _ENCODER.encode(replace(outcome, flow=shapes.show_flow(flow), step=step_shown, state_omitted=UNSET))


def is_shown_by(answer: shapes.StepShown, step: FlowStep) -> bool:
    """Return whether an observed run is still as it was shown."""
    return replace(shapes.show_step(step), result=answer.result) == answer


def _is_heavy(value: Any) -> bool:
    return len(_ENCODER.encode(value)) > KEPT_BYTES


def encode_refused(error: FlowError) -> bytes:
    """Encode the outcome of a command that was refused."""
    return _ENCODER.encode(shapes.RefusedAnswer(error=shapes.ErrorShown(code=error.code, message=error.message, details=error.details)))


def encode_reply_outcome(outcome: OutcomeName, flow: Flow | None) -> bytes:
    """Encode what became of a reply; one is stored for each, so it is small."""
    ok = outcome in _EFFECTIVE
    if flow is None:
        return _ENCODER.encode(shapes.ReplyOutcome(ok=ok, outcome=outcome))
    return _ENCODER.encode(shapes.ReplyOutcome(ok=ok, outcome=outcome, flow_id=flow.id, revision=flow.revision))


EXPIRED = encode_reply_outcome("expired", None)
"""The outcome of a held reply for which nobody came, or that made room."""


def encode_status(flow: Flow) -> bytes:
    """Encode the answer to `status`."""
    return _ENCODER.encode({"ok": True, "flow": shapes.show_flow(flow)})


def error_in(result: bytes) -> FlowError | None:
    """Return the error in a stored outcome, or None where it is a success.

    Of a repeat there is nothing but the bytes.
    """
    if not result.startswith(b'{"ok":false,"error":'):
        return None
    error = _REFUSED.decode(result).error
    return error_of(error.code, error.message, error.details)


def error_headers(error: FlowError) -> dict[str, str]:
    """Return the micro service headers of an error (ADR-32).

    They are one line of text, and the HTTP-like code.
    """
    return {SERVICE_ERROR: one_line(f"{error.code}: {error.message}"), SERVICE_ERROR_CODE: str(error.http)}


def encode_flows(flows: Sequence[tuple[int, Flow]], following: int | None, *, budget: int = PAGE_BYTES) -> bytes:
    """Encode the answer to `list_mine`: the first flows that fit.

    `following`: see `cut_page`.
    """
    kept, cursor = cut_page([(n, shapes.show_flow(flow)) for n, flow in flows], following, budget)
    return _ENCODER.encode(shapes.FlowPage(count=len(kept), flows=kept, next_cursor=cursor))


def encode_waits(flows: Sequence[tuple[int, Flow]], following: int | None, *, budget: int = PAGE_BYTES) -> bytes:
    """Encode the answer to `waits`: what the first flows wait for, as far as it fits."""
    kept, cursor = cut_page([(n, shapes.show_wait(flow)) for n, flow in flows], following, budget)
    return _ENCODER.encode(shapes.WaitPage(waits=kept, next_cursor=cursor))


def encode_steps(steps: Sequence[tuple[int, FlowStep]], following: int | None, *, budget: int = PAGE_BYTES) -> bytes:
    """Encode the answer to `steps`: the first runs that fit."""
    kept, cursor = cut_page([(n, shapes.show_step(step)) for n, step in steps], following, budget)
    return _ENCODER.encode(shapes.StepPage(steps=kept, next_cursor=cursor))


def encode_step(step: FlowStep) -> bytes:
    """Encode the answer to `step`."""
    return _ENCODER.encode(shapes.StepAnswer(step=shapes.show_step(step)))


def encode_events(events: Sequence[tuple[int, FlowEvent]], following: int | None, *, budget: int = PAGE_BYTES) -> bytes:
    """Encode the answer to `history`: the first entries that fit, in the order given.

    Their position is their `seq`.
    """
    kept, cursor = cut_page([(seq, shapes.show_event(event)) for seq, event in events], following, budget)
    return _ENCODER.encode(shapes.EventPage(events=kept, next_cursor=cursor))
