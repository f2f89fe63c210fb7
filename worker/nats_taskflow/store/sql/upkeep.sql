-- Housekeeping, each in a transaction of its own.

-- name: set_meta
UPDATE meta SET value = ?2 WHERE name = ?1;

-- name: leave_clean
UPDATE meta SET value = 1 WHERE name = 'clean' AND (SELECT e.value FROM meta AS e WHERE e.name = 'epoch') = ?1;

-- A copy says that it is one until the worker on it has caught up with the broker.
-- name: note_restored
INSERT INTO meta (name, value) VALUES ('restored', 1) ON CONFLICT (name) DO UPDATE SET value = 1;

-- name: forget_restored
DELETE FROM meta WHERE name = 'restored';

-- name: get_meta
SELECT value FROM meta WHERE name = ?1;

-- name: last_numbers
SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'flows'), 0),
  coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'flow_events'), 0);

-- name: expired_held
SELECT topic, correlation_id, event_id, CAST(payload_json AS BLOB), key
FROM held WHERE expires_us <= ?1 ORDER BY expires_us LIMIT ?2;

-- name: place_of_reply
SELECT source, source_seq FROM inbox WHERE scope = 'reply' AND key = ?1 AND key IS NOT NULL;

-- name: prunable_flows
SELECT f.n, f.status, f.owner_session_key, length(CAST(f.state_json AS BLOB)) FROM flows AS f INDEXED BY flows_ended
WHERE (f.status = 'cancelled' OR f.status = 'finished' OR f.status = 'failed') AND f.updated_us < ?1
  AND (SELECT max(e.n) FROM flow_events AS e WHERE e.flow = f.n) <= (SELECT p.n FROM published AS p WHERE p.outlet = 'events')
  AND NOT EXISTS (SELECT 1 FROM ends AS e WHERE e.flow = f.n)
ORDER BY f.updated_us LIMIT ?2;

-- name: bury_flow
INSERT INTO tombstones (flow_id, at_us) SELECT id, updated_us FROM flows WHERE n = ?1 ON CONFLICT (flow_id) DO NOTHING;

-- name: prune_tombstones
DELETE FROM tombstones WHERE flow_id IN (SELECT flow_id FROM tombstones WHERE at_us < ?1 ORDER BY at_us LIMIT ?2);

-- name: prune_events
DELETE FROM flow_events WHERE flow = ?;

-- name: prune_steps
DELETE FROM flow_steps WHERE flow = ?;

-- name: prune_waiters
DELETE FROM waiters WHERE flow = ?;

-- name: prune_outgoing
DELETE FROM outgoing WHERE flow = ?;

-- name: forget_notices
DELETE FROM outgoing WHERE n = ?1 AND kind = 'cancel';

-- One that was refused while it was being sent has another number of tries by now.
-- name: note_sent
UPDATE outgoing SET is_sent = attempts = ?2, next_us = ?3 WHERE n = ?1;

-- name: postpone_outgoing
UPDATE outgoing SET attempts = attempts + 1, next_us = ?2 WHERE n = ?1;

-- name: prune_flow
DELETE FROM flows WHERE n = ?;

-- name: forget_usage
DELETE FROM usage WHERE agent = ? AND open_flows = 0 AND state_bytes = 0;

-- name: prunable_inbox
SELECT n, outcome FROM (
  SELECT n, outcome FROM inbox WHERE source = ?1 AND source_seq IS NOT NULL AND source_seq < ?2 AND at_us < ?3 AND outcome <> 'held'
  UNION ALL
  SELECT n, outcome FROM inbox WHERE source_seq IS NULL AND at_us < ?3 AND outcome <> 'held'
) LIMIT ?4;

-- name: prune_inbox
DELETE FROM inbox WHERE n = ?;

-- name: set_aside
UPDATE flows SET set_aside = ?2, due_us = NULL WHERE id = ?1 AND set_aside IS NULL;

-- name: mark_published
UPDATE published SET n = ?2 WHERE outlet = ?1 AND n < ?2;

-- Of those that a consumer takes: replies, or what is none. Of repeats and of what could not be read it is not known.
-- name: known_places
SELECT source_seq FROM inbox WHERE source = ?1 AND source_seq > ?2 AND source_seq <= ?3 AND (scope IS NULL OR (scope = 'reply') = ?4);

-- Place 0 says of which generation of the source the others are.
-- name: note_born
INSERT INTO attempts (source, seq, attempts, born) VALUES (?1, 0, 0, ?2) ON CONFLICT (source, seq) DO UPDATE SET born = ?2;

-- It was begun once before it was noted at all.
-- name: note_attempt
INSERT INTO attempts (source, seq, attempts, born)
SELECT ?1, ?2, 2, coalesce((SELECT born FROM attempts WHERE source = ?1 AND seq = 0), '') WHERE true
ON CONFLICT (source, seq) DO UPDATE SET attempts = attempts + 1;

-- name: attempts
SELECT seq, attempts FROM attempts WHERE source = ?1 AND seq > ?2 AND seq <= ?3;

-- name: forget_attempts
DELETE FROM attempts WHERE source = ?1
  AND (born <> ?2 OR EXISTS (SELECT 1 FROM inbox AS i WHERE i.source = ?1 AND i.source_seq = attempts.seq));

-- name: set_aside_row
SELECT n, id, controller_id, goal, owner_session_key, requester_origin, current_step, status, cancel_requested,
  CAST(state_json AS BLOB), CAST(wait_json AS BLOB), wait_id, parked_us, CAST(progress_json AS BLOB), revision, seq, created_us,
  updated_us, parent_id, hops, NULL
FROM flows WHERE id = ?1 AND set_aside IS NOT NULL;

-- name: release
UPDATE flows SET set_aside = NULL, due_us = ?2 WHERE n = ?1;

-- name: note_replayed
UPDATE dead_letters SET replays = replays + 1, replayed_us = ?3, replayed_by = ?2 WHERE n = ?1 RETURNING n;

-- name: note_purged
INSERT OR IGNORE INTO purged_letters (stream, seq) SELECT stream, seq FROM dead_letters
WHERE n IN (SELECT value FROM json_each(?1)) AND n <= (SELECT p.n FROM published AS p WHERE p.outlet = 'dead_letters') AND seq IS NOT NULL;

-- name: forget_purged
DELETE FROM purged_letters WHERE stream = ?1 AND seq < ?2
  AND NOT EXISTS (SELECT 1 FROM inbox AS i WHERE i.source = stream AND i.source_seq = seq);

-- name: purge_letters
DELETE FROM dead_letters WHERE n IN (SELECT value FROM json_each(?1)) AND n <= (SELECT p.n FROM published AS p WHERE p.outlet = 'dead_letters')
RETURNING n;

-- name: note_intervention
INSERT INTO interventions (at_us, actor, verb, about, reason) VALUES (?1, ?2, ?3, ?4, ?5);
