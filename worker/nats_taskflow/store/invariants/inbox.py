"""Check the messages taken in: each has one outcome and left its mark once.

What became of a message can be seen.
"""

from __future__ import annotations

from collections.abc import Iterator

from nats_taskflow.store.invariants.evidence import Evidence, FlowHistory


def has_one_effect(evidence: Evidence) -> Iterator[str]:
    """I-1: a message changes one flow, in each way once, only if its outcome says so."""
    twice = """SELECT actor, cause, kind, count(*) FROM flow_events WHERE cause IS NOT NULL AND actor LIKE 'agent:%'
      GROUP BY 1, 2, 3 HAVING count(*) > 1"""
    for actor, cause, kind, times in evidence.rows(twice):
        yield f"command {cause} of {actor} had its effect ({kind}) {times} times"
    spread = """SELECT actor, cause FROM flow_events WHERE cause IS NOT NULL AND actor LIKE 'agent:%'
      GROUP BY 1, 2 HAVING min(flow) <> max(flow)"""
    for actor, cause in evidence.rows(spread):
        yield f"command {cause} of {actor} changed several flows"
    refused = """SELECT DISTINCT e.actor, e.cause, i.outcome, f.id FROM flow_events AS e CROSS JOIN inbox AS i CROSS JOIN flows AS f
      WHERE e.cause IS NOT NULL AND e.actor LIKE 'agent:%' AND i.scope = 'cmd:' || substr(e.actor, 7) AND i.key = e.cause
        AND i.key IS NOT NULL AND i.outcome <> 'applied' AND f.n = e.flow"""
    for actor, cause, outcome, flow_id in evidence.rows(refused):
        yield f"command {cause} of {actor} is {outcome}, yet it changed {flow_id}"
    answered = """SELECT f.id, e.cause, e.kind, count(*) FROM flow_events AS e CROSS JOIN flows AS f
      WHERE e.actor LIKE 'topic:%' AND e.cause IS NOT NULL AND e.kind = 'resumed' AND f.n = e.flow
      GROUP BY e.flow, e.actor, e.correlation_id, e.cause HAVING count(*) > 1"""
    for flow_id, cause, kind, times in evidence.rows(answered):
        yield f"the reply {cause} had its effect ({kind}) on {flow_id} {times} times"


def says_what_is_kept(history: FlowHistory) -> Iterator[str]:
    """I-1: a flow is at the revision that a command's outcome names, or a later one."""
    for outcome in history.outcomes:
        if outcome.revision > history.revision:
            command = f"{outcome.key} ({outcome.scope})"
            yield f"command {command} was told of revision {outcome.revision} of {history.id}, which is at {history.revision}"


def comes_from_a_message(evidence: Evidence) -> Iterator[str]:
    """I-2: what agents and replies did came from messages that are on record.

    They are on record as far back as messages are remembered.
    """
    commands = """SELECT DISTINCT e.actor, e.cause, f.id FROM flow_events AS e CROSS JOIN flows AS f
      WHERE e.cause IS NOT NULL AND e.actor LIKE 'agent:%' AND e.at_us >= ?1 AND f.n = e.flow AND NOT EXISTS
        (SELECT 1 FROM inbox AS i WHERE i.scope = 'cmd:' || substr(e.actor, 7) AND i.key = e.cause AND i.key IS NOT NULL)"""
    for actor, cause, flow_id in evidence.rows(commands, evidence.horizon):
        yield f"the journal of {flow_id} names command {cause} of {actor}, which was never taken in"
    replies = """SELECT DISTINCT e.actor, e.correlation_id, e.cause, f.id FROM flow_events AS e CROSS JOIN flows AS f
      WHERE e.cause IS NOT NULL AND e.actor LIKE 'topic:%' AND e.correlation_id IS NOT NULL AND e.at_us >= ?1 AND f.n = e.flow
        AND NOT EXISTS (SELECT 1 FROM inbox AS i WHERE i.scope = 'reply' AND i.key IS NOT NULL
          AND i.key = substr(e.actor, 7) || char(10) || e.correlation_id || char(10) || e.cause)"""
    for actor, correlation_id, cause, flow_id in evidence.rows(replies, evidence.horizon):
        yield f"the journal of {flow_id} names reply {cause} for ({actor[6:]}, {correlation_id}), which was never taken in"


def conflicts_are_visible(evidence: Evidence) -> Iterator[str]:
    """I-3: another body under a used id is a conflict in the dead letters.

    It is never taken for a repeat.
    """
    unburied = """SELECT source, source_seq FROM inbox WHERE outcome = 'conflict' AND source_seq IS NOT NULL
      EXCEPT SELECT stream, seq FROM dead_letters WHERE reason = 'conflict' EXCEPT SELECT stream, seq FROM purged_letters"""
    for source, seq in evidence.rows(unburied):
        yield f"message {seq} of {source} conflicts with an earlier one and is not in the dead letters"
    if evidence.pruned:
        return  # what it repeats may be forgotten
    unlike = "SELECT n FROM inbox WHERE outcome = 'duplicate' AND digest NOT IN (SELECT digest FROM inbox WHERE key IS NOT NULL)"
    for (n,) in evidence.rows(unlike):
        yield f"inbox row {n} was taken for a repeat, and repeats nothing"


def repeats_are_told_the_same(evidence: Evidence) -> Iterator[str]:
    """I-5: a repeated command is told, byte for byte, what the first was told."""
    if evidence.pruned:
        return  # what it repeats may be forgotten
    query = """WITH odd AS (SELECT digest, result FROM inbox WHERE outcome = 'duplicate'
        EXCEPT SELECT digest, result FROM inbox WHERE key IS NOT NULL)
      SELECT i.n FROM odd CROSS JOIN inbox AS i WHERE i.outcome = 'duplicate' AND i.digest = odd.digest AND i.result = odd.result
        AND i.digest IN (SELECT digest FROM inbox WHERE scope LIKE 'cmd:%')"""
    for (n,) in evidence.rows(query):
        yield f"the repeat in inbox row {n} was told something else than the first"


def outcomes_add_up(evidence: Evidence) -> Iterator[str]:
    """I-16: every message has one outcome, and the counters agree with the rows.

    The counters still have those of forgotten messages.
    """
    counted: dict[str, int] = dict(evidence.rows("SELECT name, value FROM counters WHERE value <> 0").fetchall())
    seen = {f"inbox.{name}": number for name, number in evidence.rows("SELECT outcome, count(*) FROM inbox GROUP BY outcome")}
    seen |= {f"flows.{status}": number for status, number in evidence.rows("SELECT status, count(*) FROM flows GROUP BY status")}
    query = (
        "SELECT CASE WHEN json_valid(wait_json) THEN json_extract(wait_json, '$.kind') END, count(*)"
        " FROM flows WHERE wait_json IS NOT NULL GROUP BY 1"
    )
    waits = dict(evidence.rows(query))
    unreadable = waits.pop(None, 0)
    seen |= {f"waits.{name}": number for name, number in waits.items()}
    seen["held"] = evidence.value("SELECT count(*) FROM held")
    for name in sorted(counted.keys() | seen.keys()):
        says, has = counted.get(name, 0), seen.get(name, 0)
        forgettable = evidence.pruned and name.startswith("inbox.") and name != "inbox.held"
        if says < has or (says > has and not forgettable and not (unreadable and name.startswith("waits."))):
            yield f"the counter {name} says {says}, there are {has}"
    for tenant, *_ in evidence.rows("SELECT tenant, count(*) FROM held GROUP BY tenant EXCEPT SELECT * FROM held_tenants"):
        yield f"the quota of {tenant or 'the topics that nothing covers'} counts other replies than are held"
    for (tenant,) in evidence.rows("SELECT tenant FROM held_tenants EXCEPT SELECT tenant FROM held"):
        yield f"the quota of {tenant} counts replies, and none is held"
    for way in (
        "SELECT tenant, topic, count(*) FROM held GROUP BY tenant, topic EXCEPT SELECT * FROM held_topics",
        "SELECT * FROM held_topics EXCEPT SELECT tenant, topic, count(*) FROM held GROUP BY tenant, topic",
    ):
        for _, topic, count in evidence.rows(way):
            yield f"of topic {topic} other replies are counted than are held: {count}"
    lost = "SELECT key FROM held EXCEPT SELECT key FROM inbox WHERE outcome = 'held' AND scope = 'reply'"
    yield from (f"a reply is held whose message does not say so: {key!r}" for (key,) in evidence.rows(lost))
    gone = "SELECT key FROM inbox WHERE outcome = 'held' AND scope = 'reply' EXCEPT SELECT key FROM held"
    yield from (f"a message says that its reply is held, and it is not: {key!r}" for (key,) in evidence.rows(gone))


def what_is_needed_is_kept(evidence: Evidence) -> Iterator[str]:
    """I-24: no message is forgotten that may come again.

    One that stood after a row young enough to be kept went too early.
    """
    query = """SELECT n, before, at_us FROM
      (SELECT n, lag(n) OVER (ORDER BY n) AS before, lag(at_us) OVER (ORDER BY n) AS at_us FROM inbox) WHERE n > before + 1"""
    for n, before, at_us in evidence.rows(query):
        if at_us >= evidence.horizon:
            yield f"inbox rows {before + 1} to {n - 1} are gone, though they were younger than messages are remembered"


def nothing_vanishes(evidence: Evidence) -> Iterator[str]:
    """I-26: a message that came to nothing lies in the dead letters, whole."""
    query = """SELECT source, source_seq FROM inbox WHERE outcome IN ('dead', 'flow_mismatch', 'expired') AND source_seq IS NOT NULL
      EXCEPT SELECT stream, seq FROM dead_letters EXCEPT SELECT stream, seq FROM purged_letters"""
    for source, seq in evidence.rows(query):
        yield f"message {seq} of {source} could not be used, and is not in the dead letters"
