-- What a batch writes. Every statement runs with executemany.

-- name: insert_flow
INSERT INTO flows (n, id, controller_id, goal, owner_session_key, requester_origin, current_step, status, cancel_requested, state_json,
  wait_json, wait_id, parked_us, progress_json, revision, seq, created_us, updated_us, due_us, idempotency_key, parent_id, hops)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: update_flow
UPDATE flows SET current_step = ?, status = ?, cancel_requested = ?, state_json = ?, wait_json = ?, wait_id = ?, parked_us = ?,
  progress_json = ?, revision = ?, seq = ?, updated_us = ?, due_us = ?, set_aside = NULL
WHERE n = ? AND revision = ? AND seq = ?;

-- name: insert_event
INSERT INTO flow_events (n, flow, seq, revision, kind, payload_json, at_us, actor, cause, status, previous_status, current_step,
  correlation_id, trace, epoch)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: upsert_step
INSERT INTO flow_steps (id, flow, runtime, child_session_key, run_id, task, status, result_json, created_us, updated_us)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (flow, run_id) DO UPDATE SET task = excluded.task, status = excluded.status, result_json = excluded.result_json,
  child_session_key = excluded.child_session_key, updated_us = excluded.updated_us;

-- name: close_waits
UPDATE waiters SET open = 0 WHERE flow = ? AND wait_id = ? AND open = 1;

-- name: drop_requests
DELETE FROM outgoing WHERE flow = ? AND wait_id = ? AND kind = 'request';

-- name: insert_outgoing
INSERT INTO outgoing (flow, wait_id, kind, subject, reply, headers_json, body, next_us, nonce)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, lower(hex(randomblob(16))));

-- One that was sent is sent again, later each time. Of one that is being sent only the try counts: `settle_outgoing` sees that.
-- name: refuse_request
UPDATE outgoing SET attempts = attempts + 1, is_sent = 0,
  next_us = CASE WHEN is_sent THEN ?3 + min(?4 << min(attempts, 16), ?5) ELSE next_us END
WHERE flow = ?1 AND wait_id = ?2 AND kind = 'request';

-- name: close_leaf
UPDATE waiters SET open = 0 WHERE flow = ? AND wait_id = ? AND leaf = ?;

-- name: insert_waiter
INSERT INTO waiters (flow, wait_id, leaf, topic, correlation_id, mode, open) VALUES (?, ?, ?, ?, ?, ?, ?);

-- name: keep_end
INSERT INTO ends (flow, cascade, trace) VALUES (?, ?, ?)
ON CONFLICT (flow) DO UPDATE SET cascade = max(cascade, excluded.cascade), trace = excluded.trace;

-- name: forget_end
DELETE FROM ends WHERE flow = ?;

-- name: insert_held
INSERT INTO held (topic, correlation_id, event_id, payload_json, arrived_us, expires_us, key, flow_id, trace, tenant)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: bury_displaced
INSERT INTO dead_letters (reason, message, subject, stream, seq, headers_json, body, at_us)
SELECT 'expired', ?1, h.topic, coalesce(i.source, ''), i.source_seq,
  json_object('Correlation-Id', h.correlation_id, 'Event-Id', h.event_id), CAST(h.payload_json AS BLOB), ?2
FROM held AS h LEFT JOIN inbox AS i ON i.scope = 'reply' AND i.key = h.key AND i.key IS NOT NULL
WHERE h.key = ?3;

-- name: delete_held
DELETE FROM held WHERE key = ?;

-- name: change_outcome
UPDATE inbox SET outcome = ?, result = ? WHERE scope = 'reply' AND key = ? AND key IS NOT NULL;

-- name: insert_inbox
INSERT INTO inbox (scope, key, digest, outcome, result, source, source_seq, at_us) VALUES (?, ?, ?, ?, ?, ?, ?, ?);

-- name: insert_dead_letter
INSERT INTO dead_letters (reason, message, subject, stream, seq, headers_json, body, at_us) VALUES (?, ?, ?, ?, ?, ?, ?, ?);

-- name: count
INSERT INTO counters (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value;

-- name: count_usage
INSERT INTO usage (agent, open_flows, state_bytes) VALUES (?, ?, ?)
ON CONFLICT (agent) DO UPDATE SET open_flows = open_flows + excluded.open_flows, state_bytes = state_bytes + excluded.state_bytes;
