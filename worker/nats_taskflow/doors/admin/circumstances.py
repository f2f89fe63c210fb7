"""Gather what bears on a flow, for `explain` to make sentences of."""

from __future__ import annotations

from nats_taskflow.doors.admin.explain import Arrival, Circumstances, reply_leaves
from nats_taskflow.flow.lifecycle import FlowStatus
from nats_taskflow.flow.model import Flow, Pair
from nats_taskflow.store.port import Reads
from nats_taskflow.units import Micros

_NEAR = 20
"""Replies looked at for each pair, topic and correlation id."""
_PAIRS = 20
"""Earlier waits of a flow that are looked at."""


async def gather(reads: Reads, flow: Flow, now: Micros) -> Circumstances:
    """Read the last journal entries of a flow, and what came near its waits."""
    last = await reads.list_events(flow.id, limit=2, after=max(flow.seq - 2, 0))
    circumstances = Circumstances(now=now, flow=flow, last=last.items, flow_id=flow.id)
    circumstances.outgoing = await reads.outgoing_of(flow.id)
    if flow.status is not FlowStatus.WAITING:
        await _add_earlier_pairs(reads, circumstances, flow)
    for leaf in reply_leaves(flow):
        of_correlation = await reads.held_replies(correlation_id=leaf.correlation_id, limit=_NEAR, payloads=False)
        of_topic = await reads.held_replies(topic=leaf.topic, limit=_NEAR, payloads=False)
        circumstances.held |= dict(of_correlation.rows) | dict(of_topic.rows)
        await _add_received(reads, circumstances, (leaf.topic, leaf.correlation_id or ""))
    return circumstances


async def gather_for_agent(reads: Reads, flow: Flow, now: Micros) -> Circumstances:
    """Gather what an agent may know.

    Of the held replies only those for pairs that its own flow waits for, or has waited for.
    """
    circumstances = await gather(reads, flow, now)
    own = {(leaf.topic, leaf.correlation_id) for leaf in reply_leaves(flow)} | set(await reads.awaited_pairs(flow.id, _PAIRS))
    circumstances.held = {n: held for n, held in circumstances.held.items() if (held.topic, held.correlation_id) in own}
    return circumstances


async def _add_earlier_pairs(reads: Reads, circumstances: Circumstances, flow: Flow) -> None:
    """Add what came for the pairs that a flow waited for before.

    After its end, or while it does something else.
    """
    for topic, correlation_id in await reads.awaited_pairs(flow.id, _PAIRS):
        if flow.terminal:
            await _add_received(reads, circumstances, (topic, correlation_id))
        else:
            held = await reads.held_replies(topic=topic, correlation_id=correlation_id, limit=_PAIRS, payloads=False)
            circumstances.held |= dict(held.rows)


async def _add_received(reads: Reads, circumstances: Circumstances, pair: Pair) -> None:
    """Add the replies that were taken in for a pair, with their dead letters."""
    for reply in await reads.received_replies(pair, _NEAR):
        letter = await reads.letter_number(reply.source, reply.source_seq) if reply.source_seq is not None else None
        circumstances.arrivals.append(Arrival(*pair, reply, letter))
