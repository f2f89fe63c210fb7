"""Encode answers: the outcome of a command, the answer to a query, the headers of an error (CONTRACT 3).

A repeat of a command gets the bytes of its first answer again; stored are they, or what they can be made of again (SEMANTICS 6).
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
    """Return an answer as it is, or, where it weighs more than may be sent, without states and payloads: what has happened is no error."""
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
"""What is left out of an event or a flow, in this order, until the answer fits, and how it is said: mostly the first is enough."""


def flow_json(flow: Flow) -> dict[str, Any]:
    """Return FLOW of CONTRACT 3 as a JSON object."""
    shown: dict[str, Any] = msgspec.to_builtins(shapes.show_flow(flow))
    return shown


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
"""What of an outcome weighs more is not stored with it."""
_APPLIED = msgspec.json.Decoder(shapes.AppliedAnswer)


def encode_for_storage(flow: Flow, step: FlowStep | None = None, *, cancelled_children: shapes.CancelledChildren | None = None) -> bytes:
    """Encode the outcome of a command that took effect as it is stored: as it is told, or `read_light`."""
    told = encode_applied(flow, step, cancelled_children=cancelled_children)
    if len(told) <= KEPT_BYTES:
        return told
    shown = shapes.show_flow(flow)
    heavy: dict[str, Any] = {name: UNSET for name in ("state", "wait") if _is_heavy(getattr(shown, name))}
    is_step_heavy = step is not None and _is_heavy(step.result_json)
    if not heavy and not is_step_heavy:
        return told
    return _ENCODER.encode(
        shapes.AppliedAnswer(
            flow=replace(shown, state_omitted=True, **heavy),
            step=UNSET if step is None else shapes.show_step(replace(step, result_json=None) if is_step_heavy else step),
            cancelled_children=cancelled_children if cancelled_children is not None else UNSET,
            state_omitted=True,
        )
    )


def read_light(result: bytes) -> shapes.AppliedAnswer | None:
    """Return the stored outcome if something was left out of it, else None."""
    return _APPLIED.decode(result) if result.endswith(_OMITTED) else None


_OMITTED = b'"state_omitted":true}'


def encode_whole(outcome: shapes.AppliedAnswer, flow: Flow, step: FlowStep | None) -> bytes:
    """Encode a `read_light` outcome with its flow and observed run whole: the bytes that `encode_applied` made of them."""
    shown = shapes.show_step(step) if step is not None else UNSET
    return _ENCODER.encode(replace(outcome, flow=shapes.show_flow(flow), step=shown, state_omitted=UNSET))


def is_shown_by(shown: shapes.StepShown, step: FlowStep) -> bool:
    """Tell whether an observed run is still as it was shown."""
    return replace(shapes.show_step(step), result=shown.result) == shown


def _is_heavy(value: Any) -> bool:
    """Tell whether a value is too heavy to be stored once more."""
    return len(_ENCODER.encode(value)) > KEPT_BYTES


def encode_refused(error: FlowError) -> bytes:
    """Encode the outcome of a command that was refused."""
    return _ENCODER.encode(shapes.RefusedAnswer(error=shapes.ErrorShown(code=error.code, message=error.message, details=error.details)))


def encode_reply_outcome(outcome: OutcomeName, flow: Flow | None) -> bytes:
    """Encode what became of a reply. Small: one is stored for each of them."""
    ok = outcome in _EFFECTIVE
    if flow is None:
        return _ENCODER.encode(shapes.ReplyOutcome(ok=ok, outcome=outcome))
    return _ENCODER.encode(shapes.ReplyOutcome(ok=ok, outcome=outcome, flow_id=flow.id, revision=flow.revision))


EXPIRED = encode_reply_outcome("expired", None)
"""What becomes of a held reply that nobody came for, or that made room."""


def encode_status(flow: Flow) -> bytes:
    """Encode the answer to `status`."""
    return _ENCODER.encode({"ok": True, "flow": shapes.show_flow(flow)})


def error_in(result: bytes) -> FlowError | None:
    """Return the error that a stored outcome tells of, None where it tells of success: a repeat is answered with the bytes alone."""
    if not result.startswith(b'{"ok":false,"error":'):
        return None
    shown = _REFUSED.decode(result).error
    return error_of(shown.code, shown.message, shown.details)


def error_headers(error: FlowError) -> dict[str, str]:
    """Return the micro service headers of an error (ADR-32): one line of text, and the HTTP-like code."""
    return {SERVICE_ERROR: one_line(f"{error.code}: {error.message}"), SERVICE_ERROR_CODE: str(error.http)}


def encode_flows(flows: Sequence[tuple[int, Flow]], following: int | None, *, budget: int = PAGE_BYTES) -> bytes:
    """Encode the answer to `list_mine`: the first flows that fit. `following`: see `cut_page`."""
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
    """Encode the answer to `history`, in the order given: the first entries that fit; their position is their `seq`."""
    kept, cursor = cut_page([(seq, shapes.show_event(event)) for seq, event in events], following, budget)
    return _ENCODER.encode(shapes.EventPage(events=kept, next_cursor=cursor))
