-- What operators ask. `look_…` names candidates by number from one index; `find_…` reads those of them that the other filters leave.

-- name: look
SELECT n FROM flows WHERE n < ?1 ORDER BY n DESC LIMIT ?2;

-- name: look_by_status
SELECT n FROM flows INDEXED BY flows_by_status WHERE status = ?3 AND n < ?1 ORDER BY n DESC LIMIT ?2;

-- name: look_by_owner
SELECT n FROM (SELECT n FROM flows WHERE owner_session_key = ?3 AND status = 'created' AND n < ?1 ORDER BY n DESC LIMIT ?2)
UNION ALL SELECT n FROM (SELECT n FROM flows WHERE owner_session_key = ?3 AND status = 'running' AND n < ?1 ORDER BY n DESC LIMIT ?2)
UNION ALL SELECT n FROM (SELECT n FROM flows WHERE owner_session_key = ?3 AND status = 'waiting' AND n < ?1 ORDER BY n DESC LIMIT ?2)
UNION ALL SELECT n FROM (SELECT n FROM flows WHERE owner_session_key = ?3 AND status = 'finished' AND n < ?1 ORDER BY n DESC LIMIT ?2)
UNION ALL SELECT n FROM (SELECT n FROM flows WHERE owner_session_key = ?3 AND status = 'failed' AND n < ?1 ORDER BY n DESC LIMIT ?2)
UNION ALL SELECT n FROM (SELECT n FROM flows WHERE owner_session_key = ?3 AND status = 'cancelled' AND n < ?1 ORDER BY n DESC LIMIT ?2)
ORDER BY n DESC LIMIT ?2;

-- name: look_by_controller
SELECT n FROM flows INDEXED BY flows_by_controller WHERE controller_id = ?3 AND n < ?1 ORDER BY n DESC LIMIT ?2;

-- name: look_by_topic
SELECT DISTINCT flow FROM waiters INDEXED BY waiters_open WHERE topic = ?3 AND open = 1 AND flow < ?1 ORDER BY flow DESC LIMIT ?2;

-- name: find_flows
SELECT f.n, f.id, f.controller_id, f.goal, f.owner_session_key, f.requester_origin, f.current_step, f.status, f.cancel_requested,
  CAST(f.state_json AS BLOB), CAST(f.wait_json AS BLOB), f.wait_id, f.parked_us, CAST(f.progress_json AS BLOB), f.revision, f.seq,
  f.created_us, f.updated_us, f.parent_id, f.hops, f.set_aside
FROM json_each(?1) AS want CROSS JOIN flows AS f
WHERE f.n = want.value
  AND (?3 IS NULL OR f.status = ?3) AND (?4 IS NULL OR f.owner_session_key = ?4) AND (?5 IS NULL OR f.controller_id GLOB ?5)
  AND (?6 IS NULL OR f.current_step = ?6) AND (?7 IS NULL OR f.updated_us < ?7)
  AND (?8 IS NULL OR EXISTS (SELECT 1 FROM waiters AS w INDEXED BY waiters_open WHERE w.topic = ?8 AND w.flow = f.n AND w.open = 1
                             AND (?9 IS NULL OR w.correlation_id = ?9)))
  AND (?9 IS NULL OR EXISTS (SELECT 1 FROM waiters AS w WHERE w.flow = f.n AND w.wait_id = f.wait_id AND w.open = 1
                             AND w.correlation_id = ?9))
  AND (?10 IS NULL OR f.updated_us >= ?10) AND (?11 IS NULL OR f.due_us <= ?11)
  AND (?12 IS NULL OR CASE WHEN json_valid(f.wait_json) THEN json_extract(f.wait_json, '$.kind') = ?12 END)
  AND (?13 IS NULL OR instr(lower(f.goal), lower(?13)) > 0)
LIMIT ?2;

-- name: look_parked
SELECT parked_us, n FROM flows INDEXED BY flows_parked WHERE parked_us IS NOT NULL AND (parked_us, n) > (?1, ?2) AND parked_us <= ?4
ORDER BY parked_us, n LIMIT ?3;

-- name: set_aside
SELECT n, id, CAST(controller_id AS BLOB), CAST(owner_session_key AS BLOB), CAST(current_step AS BLOB), status, CAST(set_aside AS BLOB)
FROM flows INDEXED BY flows_set_aside WHERE set_aside IS NOT NULL AND n > ?1 ORDER BY n LIMIT ?2;

-- name: set_aside_flow
SELECT n, id, CAST(controller_id AS BLOB), CAST(owner_session_key AS BLOB), CAST(current_step AS BLOB), status, CAST(set_aside AS BLOB)
FROM flows WHERE id = ?1 AND set_aside IS NOT NULL;

-- name: count_set_aside
SELECT count(*) FROM flows INDEXED BY flows_set_aside WHERE set_aside IS NOT NULL;

-- name: ids_by_prefix
SELECT id FROM flows WHERE id >= ?1 AND id < ?1 || '~' ORDER BY id DESC LIMIT ?2;

-- Only ids are read, the newest first (UUIDv7), so many at a time; no index could serve an end.
-- name: id_before
SELECT id FROM flows WHERE id < ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2;

-- name: ids_by_suffix
SELECT id FROM flows WHERE id >= ?1 AND id < ?2 AND substr(id, -length(?3)) = ?3 ORDER BY id DESC LIMIT ?4;

-- name: waiters_of_pair
SELECT f.id, f.controller_id, f.owner_session_key, f.current_step, w.leaf, w.topic, w.correlation_id, w.mode, f.parked_us, f.due_us
FROM waiters AS w INDEXED BY waiters_by_pair CROSS JOIN flows AS f
WHERE w.topic = ?1 AND w.correlation_id = ?2 AND w.open = 1 AND f.n = w.flow ORDER BY w.n LIMIT ?3;

-- name: waiters_of_topic
SELECT f.id, f.controller_id, f.owner_session_key, f.current_step, w.leaf, w.topic, w.correlation_id, w.mode, f.parked_us, f.due_us
FROM waiters AS w INDEXED BY waiters_open CROSS JOIN flows AS f
WHERE w.topic = ?1 AND w.open = 1 AND f.n = w.flow ORDER BY w.flow LIMIT ?2;

-- What a flow has waited for: its waits stay after they are over.
-- name: awaited_pairs
SELECT w.topic, w.correlation_id FROM flows AS f CROSS JOIN waiters AS w
WHERE f.id = ?1 AND w.flow = f.n ORDER BY w.wait_id DESC, w.leaf LIMIT ?2;

-- name: held
SELECT n, topic, correlation_id, event_id, CASE WHEN ?3 THEN CAST(payload_json AS BLOB) END, arrived_us, expires_us, key, flow_id, trace, tenant
FROM held WHERE n > ?1 ORDER BY n LIMIT ?2;

-- Numbers are sorted, not payloads.
-- name: held_of_topic
SELECT n, topic, correlation_id, event_id, CASE WHEN ?3 THEN CAST(payload_json AS BLOB) END, arrived_us, expires_us, key, flow_id, trace, tenant
FROM held WHERE n IN (SELECT n FROM held INDEXED BY held_by_pair WHERE topic = ?4 AND n > ?1 ORDER BY n LIMIT ?2) ORDER BY n;

-- name: held_of_pair
SELECT n, topic, correlation_id, event_id, CASE WHEN ?3 THEN CAST(payload_json AS BLOB) END, arrived_us, expires_us, key, flow_id, trace, tenant
FROM held WHERE n IN (
  SELECT n FROM held INDEXED BY held_by_pair WHERE topic = ?4 AND correlation_id = ?5 AND n > ?1 ORDER BY n LIMIT ?2
) ORDER BY n;

-- name: held_of_correlation
SELECT n, topic, correlation_id, event_id, CASE WHEN ?3 THEN CAST(payload_json AS BLOB) END, arrived_us, expires_us, key, flow_id, trace, tenant
FROM held INDEXED BY held_by_correlation WHERE correlation_id = ?4 AND n > ?1 ORDER BY n LIMIT ?2;

-- name: held_by_number
SELECT n, topic, correlation_id, event_id, CAST(payload_json AS BLOB), arrived_us, expires_us, key, flow_id, trace, tenant
FROM held WHERE n = ?1;

-- name: received_replies
SELECT key, outcome, source, source_seq, at_us FROM inbox
WHERE scope = 'reply' AND key >= ?1 AND key < ?2 AND key IS NOT NULL ORDER BY key DESC LIMIT ?3;

-- name: letter_number
SELECT n FROM dead_letters WHERE stream = ?1 AND seq = ?2 AND seq IS NOT NULL ORDER BY n DESC LIMIT 1;

-- So many at a time, in the order of their index; where one slice ends, the next begins.
-- name: letter_after
SELECT subject, reason, replays, at_us, n FROM dead_letters INDEXED BY dead_letters_by_subject
WHERE (subject, reason, replays, at_us, n) > (?1, ?2, ?3, ?4, ?5) ORDER BY subject, reason, replays, at_us, n LIMIT 1 OFFSET ?6;

-- name: letter_groups
SELECT reason, subject, count(*), sum(replays > 0), min(at_us), max(at_us) FROM dead_letters INDEXED BY dead_letters_by_subject
WHERE (subject, reason, replays, at_us, n) > (?1, ?2, ?3, ?4, ?5) AND (subject, reason, replays, at_us, n) <= (?6, ?7, ?8, ?9, ?10)
  AND (?11 IS NULL OR at_us < ?11)
GROUP BY subject, reason;

-- name: letters
SELECT n, reason, message, subject, stream, seq, CAST('{}' AS BLOB), x'', at_us, replays, replayed_us, replayed_by, length(body)
FROM dead_letters WHERE n > ?1 AND n <= ?2 AND (?3 IS NULL OR subject = ?3) AND (?4 IS NULL OR at_us < ?4) AND (?5 OR replays = 0)
ORDER BY n LIMIT ?6;

-- name: letters_by_reason
SELECT n, reason, message, subject, stream, seq, CAST('{}' AS BLOB), x'', at_us, replays, replayed_us, replayed_by, length(body)
FROM dead_letters INDEXED BY dead_letters_by_reason WHERE reason = ?7 AND n > ?1 AND n <= ?2 AND (?3 IS NULL OR subject = ?3)
  AND (?4 IS NULL OR at_us < ?4) AND (?5 OR replays = 0)
ORDER BY n LIMIT ?6;

-- name: letters_by_number
SELECT d.n, d.reason, d.message, d.subject, d.stream, d.seq, CAST('{}' AS BLOB), x'', d.at_us, d.replays, d.replayed_us, d.replayed_by,
  length(d.body)
FROM json_each(?1) AS want CROSS JOIN dead_letters AS d WHERE d.n = want.value;

-- name: letter
SELECT n, reason, message, subject, stream, seq, CAST(headers_json AS BLOB), body, at_us, replays, replayed_us, replayed_by, length(body)
FROM dead_letters WHERE n = ?1;

-- There are as many rows as agents.
-- name: most_used
SELECT * FROM (SELECT 'open_flows', agent, open_flows FROM usage ORDER BY open_flows DESC LIMIT 1)
UNION ALL SELECT * FROM (SELECT 'state_bytes', agent, state_bytes FROM usage ORDER BY state_bytes DESC LIMIT 1);

-- name: count_letters
SELECT count(*) FROM dead_letters;

-- name: last_letter
SELECT coalesce(max(n), 0) FROM dead_letters;

-- name: last_event
SELECT coalesce(max(n), 0) FROM flow_events;

-- name: count_due
SELECT count(*) FROM (SELECT 1 FROM flows INDEXED BY flows_by_due WHERE due_us IS NOT NULL AND due_us <= ?1 LIMIT ?2);

-- name: oldest_parked
SELECT id, parked_us FROM flows INDEXED BY flows_parked WHERE parked_us IS NOT NULL ORDER BY parked_us, n LIMIT 1;

-- name: count_outgoing
SELECT count(*), coalesce(max(attempts), 0) FROM outgoing WHERE is_sent = 0;

-- name: outgoing_of
SELECT o.subject, o.attempts, o.next_us FROM flows AS f CROSS JOIN outgoing AS o
WHERE f.id = ?1 AND o.flow = f.n AND o.kind = 'request' AND o.is_sent = 0 LIMIT 1;

-- name: interventions
SELECT n, at_us, actor, verb, about, reason FROM interventions WHERE n < ?1 ORDER BY n DESC LIMIT ?2;

-- name: meta
SELECT name, value FROM meta;
