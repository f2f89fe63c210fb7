-- What can be asked, each answered by one statement.

-- name: get_flow
SELECT n, id, controller_id, goal, owner_session_key, requester_origin, current_step, status, cancel_requested,
  CAST(state_json AS BLOB), CAST(wait_json AS BLOB), wait_id, parked_us, CAST(progress_json AS BLOB), revision, seq, created_us,
  updated_us, parent_id, hops, set_aside
FROM flows WHERE id = ?1;

-- name: list_flows
SELECT n, id, controller_id, goal, owner_session_key, requester_origin, current_step, status, cancel_requested,
  CAST(state_json AS BLOB), CAST(wait_json AS BLOB), wait_id, parked_us, CAST(progress_json AS BLOB), revision, seq, created_us,
  updated_us, parent_id, hops, set_aside
FROM flows WHERE n < ?1 ORDER BY n DESC LIMIT max(?2, 0);

-- One look-up per status in the one index that also serves the pair of filters; the newest of all of them win.
-- name: list_flows_by_owner
SELECT n, id, controller_id, goal, owner_session_key, requester_origin, current_step, status, cancel_requested,
  CAST(state_json AS BLOB), CAST(wait_json AS BLOB), wait_id, parked_us, CAST(progress_json AS BLOB), revision, seq, created_us,
  updated_us, parent_id, hops, set_aside
FROM flows WHERE n IN (
  SELECT n FROM (SELECT n FROM flows WHERE owner_session_key = ?3 AND status = 'created' AND n < ?1 ORDER BY n DESC LIMIT max(?2, 0))
  UNION ALL
  SELECT n FROM (SELECT n FROM flows WHERE owner_session_key = ?3 AND status = 'running' AND n < ?1 ORDER BY n DESC LIMIT max(?2, 0))
  UNION ALL
  SELECT n FROM (SELECT n FROM flows WHERE owner_session_key = ?3 AND status = 'waiting' AND n < ?1 ORDER BY n DESC LIMIT max(?2, 0))
  UNION ALL
  SELECT n FROM (SELECT n FROM flows WHERE owner_session_key = ?3 AND status = 'finished' AND n < ?1 ORDER BY n DESC LIMIT max(?2, 0))
  UNION ALL
  SELECT n FROM (SELECT n FROM flows WHERE owner_session_key = ?3 AND status = 'failed' AND n < ?1 ORDER BY n DESC LIMIT max(?2, 0))
  UNION ALL
  SELECT n FROM (SELECT n FROM flows WHERE owner_session_key = ?3 AND status = 'cancelled' AND n < ?1 ORDER BY n DESC LIMIT max(?2, 0))
) ORDER BY n DESC LIMIT max(?2, 0);

-- name: list_flows_by_status
SELECT n, id, controller_id, goal, owner_session_key, requester_origin, current_step, status, cancel_requested,
  CAST(state_json AS BLOB), CAST(wait_json AS BLOB), wait_id, parked_us, CAST(progress_json AS BLOB), revision, seq, created_us,
  updated_us, parent_id, hops, set_aside
FROM flows WHERE status = ?3 AND n < ?1 ORDER BY n DESC LIMIT max(?2, 0);

-- name: list_flows_by_owner_and_status
SELECT n, id, controller_id, goal, owner_session_key, requester_origin, current_step, status, cancel_requested,
  CAST(state_json AS BLOB), CAST(wait_json AS BLOB), wait_id, parked_us, CAST(progress_json AS BLOB), revision, seq, created_us,
  updated_us, parent_id, hops, set_aside
FROM flows INDEXED BY flows_by_owner WHERE owner_session_key = ?3 AND status = ?4 AND n < ?1 ORDER BY n DESC LIMIT max(?2, 0);

-- Numbers are sorted, not results.
-- name: list_steps
SELECT s.n, s.id, f.id, s.runtime, s.child_session_key, s.run_id, s.task, s.status, CAST(s.result_json AS BLOB), s.created_us,
  s.updated_us
FROM flow_steps AS s CROSS JOIN flows AS f
WHERE s.n IN (
  SELECT n FROM flow_steps WHERE flow = (SELECT n FROM flows WHERE id = ?1) AND n > ?2 ORDER BY n LIMIT max(?3, 0)
) AND f.n = s.flow ORDER BY s.n;

-- name: get_step
SELECT s.n, s.id, f.id, s.runtime, s.child_session_key, s.run_id, s.task, s.status, CAST(s.result_json AS BLOB), s.created_us,
  s.updated_us
FROM flows AS f JOIN flow_steps AS s ON s.flow = f.n WHERE f.id = ?1 AND s.run_id = ?2;

-- name: list_events
SELECT f.id, e.seq, e.revision, e.kind, CAST(e.payload_json AS BLOB), e.at_us, e.actor, e.status, e.previous_status, e.current_step,
  e.cause, e.correlation_id, e.trace
FROM flows AS f JOIN flow_events AS e ON e.flow = f.n WHERE f.id = ?1 AND e.seq > ?2 ORDER BY e.seq LIMIT max(?3, 0);

-- name: list_newest_events
SELECT f.id, e.seq, e.revision, e.kind, CAST(e.payload_json AS BLOB), e.at_us, e.actor, e.status, e.previous_status, e.current_step,
  e.cause, e.correlation_id, e.trace
FROM flows AS f JOIN flow_events AS e ON e.flow = f.n WHERE f.id = ?1 AND e.seq < ?2 ORDER BY e.seq DESC LIMIT max(?3, 0);

-- name: outcome
SELECT scope, key, digest, outcome, result, source, source_seq, at_us FROM inbox WHERE scope = ?1 AND key = ?2 AND key IS NOT NULL;

-- What a reply could still resume is due by ?1 only as far as every reply until then is decided (?3); ?4 is no topic of replies. Flows
-- whose cancellation was requested are due whatever the clock says. Last come ends to follow up, some at a time. Agents take turns among
-- the first ?5 that are due and, where there are more, the last ?5: what becomes due while one agent has many is among those. An owner up
-- to its second colon is an agent's.
-- name: due
SELECT 0, EXISTS (
  SELECT 1 FROM flows AS f WHERE f.due_us IS NOT NULL AND f.due_us <= ?1 AND f.due_us > ?3 AND f.cancel_requested = 0
    AND EXISTS (SELECT 1 FROM waiters AS w WHERE w.flow = f.n AND w.wait_id = f.wait_id AND w.open = 1 AND w.topic <> ?4)
), coalesce((SELECT value FROM counters WHERE name = 'flows.waiting'), 0), NULL, NULL
UNION ALL
SELECT * FROM (
  SELECT 1, f.id, f.wait_id, t.due_us, NULL FROM (
    SELECT n, due_us, row_number() OVER (
      PARTITION BY substr(owner, 1, 6 + instr(substr(owner, 7), ':')) ORDER BY due_us, n
    ) AS turn FROM (
      SELECT * FROM (
        SELECT f.n, f.due_us, f.owner_session_key AS owner FROM flows AS f
        WHERE f.due_us IS NOT NULL AND f.due_us <= ?1 AND (f.due_us <= ?3 OR f.cancel_requested = 1
          OR NOT EXISTS (SELECT 1 FROM waiters AS w WHERE w.flow = f.n AND w.wait_id = f.wait_id AND w.open = 1 AND w.topic <> ?4))
        ORDER BY f.due_us LIMIT ?5
      )
      UNION
      SELECT * FROM (
        SELECT f.n, f.due_us, f.owner_session_key FROM flows AS f
        WHERE f.due_us > (SELECT due_us FROM flows WHERE due_us IS NOT NULL AND due_us <= ?1 ORDER BY due_us LIMIT 1 OFFSET ?5)
          AND f.due_us <= ?1 AND (f.due_us <= ?3 OR f.cancel_requested = 1
          OR NOT EXISTS (SELECT 1 FROM waiters AS w WHERE w.flow = f.n AND w.wait_id = f.wait_id AND w.open = 1 AND w.topic <> ?4))
        ORDER BY f.due_us DESC LIMIT ?5
      )
      UNION ALL
      SELECT * FROM (
        SELECT f.n, f.due_us, f.owner_session_key FROM flows AS f INDEXED BY flows_leaving
        WHERE f.due_us IS NOT NULL AND f.cancel_requested = 1 AND f.due_us > ?1 LIMIT ?5
      )
    ) ORDER BY turn, due_us, n LIMIT max(?2, 0)
  ) AS t CROSS JOIN flows AS f ON f.n = t.n
)
UNION ALL
SELECT * FROM (SELECT 2, f.id, e.cascade, NULL, e.trace FROM ends AS e CROSS JOIN flows AS f ON f.n = e.flow ORDER BY e.flow LIMIT 20);

-- name: next_due
SELECT due_us FROM flows WHERE due_us IS NOT NULL ORDER BY due_us LIMIT 1;

-- name: counts
SELECT name, value FROM counters;

-- name: unpublished_events
SELECT e.n, f.controller_id, f.owner_session_key, f.id, e.seq, e.revision, e.kind, CAST(e.payload_json AS BLOB), e.at_us, e.actor,
  e.status, e.previous_status, e.current_step, e.cause, e.correlation_id, e.trace
FROM flow_events AS e CROSS JOIN flows AS f WHERE e.n > ?1 AND f.n = e.flow ORDER BY e.n LIMIT max(?2, 0);

-- name: unpublished_dead_letters
SELECT n, reason, message, subject, stream, seq, CAST(headers_json AS BLOB), body, at_us FROM dead_letters WHERE n > ?1 ORDER BY n LIMIT max(?2, 0);

-- Agents take turns among the first ?3 and the last, as in `due`.
-- name: outgoing_due
SELECT o.n, o.attempts, o.nonce, f.id, o.wait_id, o.kind, o.subject, o.headers_json, o.body, o.reply
FROM (
  SELECT n, next_us, row_number() OVER (PARTITION BY substr(owner, 1, 6 + instr(substr(owner, 7), ':')) ORDER BY next_us, n) AS turn FROM (
    SELECT * FROM (
      SELECT o.n, o.next_us, f.owner_session_key AS owner FROM outgoing AS o CROSS JOIN flows AS f
      WHERE o.is_sent = 0 AND o.next_us <= ?1 AND f.n = o.flow ORDER BY o.next_us, o.n LIMIT ?3
    )
    UNION
    SELECT * FROM (
      SELECT o.n, o.next_us, f.owner_session_key FROM outgoing AS o CROSS JOIN flows AS f
      WHERE o.is_sent = 0 AND o.next_us <= ?1 AND f.n = o.flow
        AND o.next_us > (SELECT next_us FROM outgoing WHERE is_sent = 0 AND next_us <= ?1 ORDER BY next_us LIMIT 1 OFFSET ?3)
      ORDER BY o.next_us DESC, o.n DESC LIMIT ?3
    )
  ) ORDER BY turn, next_us, n LIMIT ?2
) AS t CROSS JOIN outgoing AS o ON o.n = t.n CROSS JOIN flows AS f ON f.n = o.flow;

-- name: next_outgoing
SELECT next_us FROM outgoing WHERE is_sent = 0 ORDER BY next_us LIMIT 1;

-- name: published
SELECT n FROM published WHERE outlet = ?1;

-- name: was_restored
SELECT value FROM meta WHERE name = 'restored';

-- name: last_taken
SELECT max(source_seq) FROM inbox WHERE source = ?1 AND source_seq IS NOT NULL;

-- name: is_taken
SELECT 1 FROM inbox WHERE source = ?1 AND source_seq = ?2 LIMIT 1;

-- name: last_taken_of
SELECT source_seq FROM inbox WHERE source = ?1 AND source_seq IS NOT NULL AND (scope = 'reply') = ?2 ORDER BY source_seq DESC LIMIT 1;

-- The first of the stream's places, from ?2 on, that no message was taken from: one step through the index for each that was.
-- name: first_not_taken
SELECT CASE WHEN EXISTS (SELECT 1 FROM inbox WHERE source = ?1 AND source_seq = ?2) THEN (
  SELECT i.source_seq + 1 FROM inbox AS i WHERE i.source = ?1 AND i.source_seq >= ?2
    AND NOT EXISTS (SELECT 1 FROM inbox AS k WHERE k.source = ?1 AND k.source_seq = i.source_seq + 1)
  ORDER BY i.source_seq LIMIT 1
) ELSE ?2 END;

-- name: oldest_unpublished
SELECT at_us FROM (
  SELECT * FROM (SELECT at_us FROM flow_events WHERE n > (SELECT n FROM published WHERE outlet = 'events') ORDER BY n LIMIT 1)
  UNION ALL
  SELECT * FROM (SELECT at_us FROM dead_letters WHERE n > (SELECT n FROM published WHERE outlet = 'dead_letters') ORDER BY n LIMIT 1)
) ORDER BY at_us LIMIT 1;

-- name: ping
SELECT 1;
