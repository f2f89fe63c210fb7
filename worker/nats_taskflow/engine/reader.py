"""Read deliveries by the subject they arrived on: commands, replies, or neither."""

from __future__ import annotations

from collections.abc import Callable

from nats_taskflow.bus.port import Delivery
from nats_taskflow.engine.quota import UNMETERED, CommandQuota
from nats_taskflow.units import Micros
from nats_taskflow.wire.codec import read_command, refuse_stray
from nats_taskflow.wire.inbound import Ignored, Inbound, Mint, Unusable, refuse
from nats_taskflow.wire.replies import ReplyBindings
from nats_taskflow.wire.subjects import Subjects

Verdict = Inbound | Unusable | Ignored
Reader = Callable[[Delivery], Verdict]


def make_reader(
    subjects: Subjects, bindings: ReplyBindings, mint: Mint, offset: Callable[[], Micros] = lambda: 0, quota: CommandQuota = UNMETERED
) -> Reader:
    """Return a function that turns a delivery into a verdict.

    The function never raises for bad input. `offset`: how far the broker's clock is ahead of ours; a reply arrives by its clock, deadlines
    pass by ours (SEMANTICS R9). Commands count against their agent's quota at the time they were stored, not when they are read.
    """
    commands = f"{subjects.prefix}.cmd."

    def read(delivery: Delivery) -> Verdict:
        subject = delivery.subject
        if subject.startswith(commands):
            parsed = subjects.parse_command(subject)
            if parsed is None:
                return refuse_stray(subject)
            verdict = read_command(*parsed, delivery.body, delivery.headers, mint, require_id=True, subjects=subjects)
            refusal = quota.refusal(parsed[0], len(delivery.body), delivery.arrived_us)
            return verdict if refusal is None else refuse(verdict, refusal)
        place = {"stream": delivery.stream, "seq": delivery.seq, "arrived_us": delivery.arrived_us - offset()}
        return bindings.read(subject, delivery.headers, delivery.body, **place)  # type: ignore[arg-type]  # place's values fit

    return read
