-- Schema 5. Which database this is, and which flows it had.

-- A number that no other database has and every copy of this one keeps: it is written down at the broker whose consumers these are.
INSERT INTO meta (name, value) VALUES ('database', random() & 0x7fffffffffffffff);

-- Flows that were pruned. Their events lie in the event stream for longer, and a new flow under the same id would have the same event ids.
CREATE TABLE tombstones (
  flow_id TEXT PRIMARY KEY,
  at_us INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX tombstones_by_age ON tombstones (at_us);
