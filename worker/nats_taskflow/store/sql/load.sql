-- What a batch looks at. Wanted ids come as one JSON array; CROSS JOIN keeps it the outer loop, so every row is an index look-up.

-- name: inbox_by_key
SELECT i.scope, i.key, i.digest, i.outcome, i.result, i.source, i.source_seq, i.at_us
FROM json_each(?1) AS want CROSS JOIN inbox AS i
WHERE i.scope = want.value ->> 0 AND i.key = want.value ->> 1 AND i.key IS NOT NULL;

-- name: inbox_by_place
SELECT i.scope, i.key, i.digest, i.outcome, i.result, i.source, i.source_seq, i.at_us
FROM json_each(?1) AS want CROSS JOIN inbox AS i
WHERE i.source = want.value ->> 0 AND i.source_seq = want.value ->> 1 AND i.source_seq IS NOT NULL;

-- Of one pair in the order they opened: the index has them so.
-- name: waiters_by_pair
SELECT w.wait_id, w.leaf, w.topic, w.correlation_id, w.mode, f.n, f.id, f.controller_id, f.goal, f.owner_session_key, f.requester_origin,
  f.current_step, f.status, f.cancel_requested, CAST(f.state_json AS BLOB), CAST(f.wait_json AS BLOB), f.wait_id, f.parked_us,
  CAST(f.progress_json AS BLOB), f.revision, f.seq, f.created_us, f.updated_us, f.parent_id, f.hops, f.set_aside
FROM json_each(?1) AS want CROSS JOIN waiters AS w INDEXED BY waiters_by_pair CROSS JOIN flows AS f
WHERE w.topic = want.value ->> 0 AND w.correlation_id = want.value ->> 1 AND w.open = 1 AND f.n = w.flow;

-- name: last_by_pair
SELECT want.value ->> 0, want.value ->> 1, f.id
FROM json_each(?1) AS want CROSS JOIN flows AS f
WHERE f.n = (
  SELECT w.flow FROM waiters AS w
  WHERE w.topic = want.value ->> 0 AND w.correlation_id = want.value ->> 1
  ORDER BY w.n DESC LIMIT 1
);

-- Numbers only, out of the index: what lies behind a payload costs the reading of it.
-- name: held_by_pair
SELECT h.topic, h.correlation_id, h.n
FROM json_each(?1) AS want CROSS JOIN held AS h INDEXED BY held_by_pair
WHERE h.topic = want.value ->> 0 AND h.correlation_id = want.value ->> 1 AND (h.arrived_us, h.n) <= (
  SELECT max(arrived_us), max(n) FROM (
    SELECT arrived_us, n FROM held WHERE topic = want.value ->> 0 AND correlation_id = want.value ->> 1 ORDER BY arrived_us, n LIMIT ?2
  )
)
ORDER BY h.topic, h.correlation_id, h.arrived_us, h.n;

-- name: held_by_number
SELECT topic, correlation_id, event_id, CAST(payload_json AS BLOB), arrived_us, expires_us, key, flow_id, trace, tenant
FROM held WHERE n = ?1 AND expires_us > ?2;

-- name: held_by_key
SELECT h.topic, h.correlation_id, h.event_id, CAST(h.payload_json AS BLOB), h.arrived_us, h.expires_us, h.key, h.flow_id, h.trace,
  h.tenant
FROM json_each(?1) AS want CROSS JOIN held AS h WHERE h.key = want.value;

-- name: flows_by_id
SELECT f.n, f.id, f.controller_id, f.goal, f.owner_session_key, f.requester_origin, f.current_step, f.status, f.cancel_requested,
  CAST(f.state_json AS BLOB), CAST(f.wait_json AS BLOB), f.wait_id, f.parked_us, CAST(f.progress_json AS BLOB), f.revision, f.seq,
  f.created_us, f.updated_us, f.parent_id, f.hops, f.set_aside
FROM json_each(?1) AS want CROSS JOIN flows AS f
WHERE f.id = want.value;

-- name: tombstones_by_id
SELECT t.flow_id FROM json_each(?1) AS want CROSS JOIN tombstones AS t WHERE t.flow_id = want.value;

-- name: cancel_reasons
SELECT e.flow, CASE WHEN json_valid(e.payload_json) THEN e.payload_json ->> 'reason' END
FROM json_each(?1) AS want CROSS JOIN flow_events AS e
WHERE e.flow = want.value AND e.kind = 'cancel_requested';

-- name: flows_by_key
SELECT want.value ->> 0, want.value ->> 1, f.id
FROM json_each(?1) AS want CROSS JOIN flows AS f
WHERE f.owner_session_key = want.value ->> 0 AND f.idempotency_key = want.value ->> 1;

-- name: steps_by_run
SELECT s.id, f.id, s.runtime, s.child_session_key, s.run_id, s.task, s.status, CAST(s.result_json AS BLOB), s.created_us, s.updated_us
FROM json_each(?1) AS want CROSS JOIN flows AS f CROSS JOIN flow_steps AS s
WHERE f.id = want.value ->> 0 AND s.flow = f.n AND s.run_id = want.value ->> 1;

-- Those being cancelled are cancelled, and not resumed.
-- name: watchers_by_flow
SELECT w.wait_id, w.leaf, w.topic, w.correlation_id, w.mode, f.n, f.id, f.controller_id, f.goal, f.owner_session_key, f.requester_origin,
  f.current_step, f.status, f.cancel_requested, CAST(f.state_json AS BLOB), CAST(f.wait_json AS BLOB), f.wait_id, f.parked_us,
  CAST(f.progress_json AS BLOB), f.revision, f.seq, f.created_us, f.updated_us, f.parent_id, f.hops, f.set_aside
FROM json_each(?1) AS want CROSS JOIN waiters AS w INDEXED BY waiters_by_pair CROSS JOIN flows AS f
WHERE w.topic = ?2 AND w.correlation_id = want.value AND w.open = 1 AND f.n = w.flow AND f.cancel_requested = 0 AND f.set_aside IS NULL
LIMIT ?3;

-- name: children_counted
SELECT f.parent_id, count(*)
FROM json_each(?1) AS want CROSS JOIN flows AS f INDEXED BY flows_by_parent
WHERE f.parent_id = want.value AND f.parent_id IS NOT NULL AND (f.status = 'created' OR f.status = 'running' OR f.status = 'waiting')
  AND f.set_aside IS NULL
GROUP BY f.parent_id;

-- name: children_by_parent
SELECT f.parent_id, f.id
FROM json_each(?1) AS want CROSS JOIN flows AS f INDEXED BY flows_by_parent
WHERE f.parent_id = want.value AND f.parent_id IS NOT NULL AND (f.status = 'created' OR f.status = 'running' OR f.status = 'waiting')
  AND f.set_aside IS NULL
ORDER BY f.n LIMIT ?2;

-- name: usage_by_agent
SELECT u.agent, u.open_flows, u.state_bytes FROM json_each(?1) AS want CROSS JOIN usage AS u WHERE u.agent = want.value;

-- name: held_counts
SELECT t.tenant, t.held FROM json_each(?1) AS want CROSS JOIN held_tenants AS t WHERE t.tenant = want.value
UNION ALL SELECT NULL, c.value FROM counters AS c WHERE c.name = 'held';

-- name: held_most
SELECT tenant, held FROM held_tenants ORDER BY held DESC LIMIT 1;

-- name: held_first
SELECT topic, correlation_id, event_id, arrived_us, expires_us, key, tenant
FROM held WHERE tenant = ?1 AND topic = ?2 ORDER BY expires_us, n LIMIT ?3;

-- name: held_topics_most
SELECT topic, held FROM held_topics WHERE tenant = ?1 ORDER BY held DESC LIMIT ?2;

-- name: held_topics
SELECT t.topic, t.held FROM json_each(?1) AS want CROSS JOIN held_topics AS t WHERE t.tenant = ?2 AND t.topic = want.value;
