-- Schema 1. Times are integer microseconds since the epoch; JSON is text; every table is STRICT, every rule a constraint.

CREATE TABLE meta (
  name TEXT PRIMARY KEY,
  value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

INSERT INTO meta (name, value) VALUES ('epoch', 0), ('clean', 1);

-- `n` is the row's small key for the tables that refer to it; ids are what the world sees.
CREATE TABLE flows (
  n INTEGER PRIMARY KEY AUTOINCREMENT,
  id TEXT NOT NULL UNIQUE,
  controller_id TEXT NOT NULL,
  goal TEXT NOT NULL,
  owner_session_key TEXT NOT NULL,
  requester_origin TEXT NOT NULL,
  current_step TEXT NOT NULL,
  status TEXT NOT NULL CHECK (status IN ('created', 'running', 'waiting', 'cancelled', 'finished', 'failed')),
  cancel_requested INTEGER NOT NULL CHECK (cancel_requested IN (0, 1)),
  state_json TEXT NOT NULL,
  wait_json TEXT,
  wait_id INTEGER,
  parked_us INTEGER,
  progress_json TEXT,
  revision INTEGER NOT NULL CHECK (revision >= 0),
  seq INTEGER NOT NULL CHECK (seq >= 1),
  created_us INTEGER NOT NULL,
  updated_us INTEGER NOT NULL CHECK (updated_us >= created_us),
  due_us INTEGER,
  idempotency_key TEXT,
  parent_id TEXT,
  hops INTEGER NOT NULL DEFAULT 0,
  set_aside TEXT,
  CHECK ((status = 'waiting') = (wait_json IS NOT NULL)),
  CHECK ((status = 'waiting') = (wait_id IS NOT NULL)),
  CHECK (due_us IS NULL OR status = 'waiting')
) STRICT;

CREATE UNIQUE INDEX flows_by_key ON flows (owner_session_key, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX flows_by_due ON flows (due_us) WHERE due_us IS NOT NULL;
CREATE INDEX flows_by_owner ON flows (owner_session_key, status, n);
CREATE INDEX flows_by_status ON flows (status, n);
CREATE INDEX flows_ended ON flows (updated_us) WHERE status IN ('cancelled', 'finished', 'failed');

CREATE INDEX flows_by_parent ON flows (parent_id) WHERE parent_id IS NOT NULL;

-- The journal, and the outbox: `n` orders it as a whole and is never used again.
CREATE TABLE flow_events (
  n INTEGER PRIMARY KEY AUTOINCREMENT,
  flow INTEGER NOT NULL REFERENCES flows (n),
  seq INTEGER NOT NULL CHECK (seq >= 1),
  revision INTEGER NOT NULL CHECK (revision >= 0),
  kind TEXT NOT NULL,
  payload_json TEXT NOT NULL,
  at_us INTEGER NOT NULL,
  actor TEXT NOT NULL,
  cause TEXT,
  status TEXT NOT NULL,
  previous_status TEXT,
  current_step TEXT NOT NULL,
  correlation_id TEXT,
  trace TEXT,
  epoch INTEGER NOT NULL,
  UNIQUE (flow, seq)
) STRICT;

CREATE TABLE flow_steps (
  n INTEGER PRIMARY KEY,
  id TEXT NOT NULL,
  flow INTEGER NOT NULL REFERENCES flows (n),
  runtime TEXT NOT NULL CHECK (runtime IN ('managed', 'mirrored')),
  child_session_key TEXT,
  run_id TEXT NOT NULL,
  task TEXT NOT NULL,
  status TEXT NOT NULL CHECK (status IN ('pending', 'running', 'succeeded', 'failed', 'cancelled')),
  result_json TEXT NOT NULL,
  created_us INTEGER NOT NULL,
  updated_us INTEGER NOT NULL,
  UNIQUE (flow, run_id)
) STRICT;

-- Who waits for which reply, and who did: closed rows tell a late reply from an early one.
CREATE TABLE waiters (
  n INTEGER PRIMARY KEY,
  flow INTEGER NOT NULL REFERENCES flows (n),
  wait_id INTEGER NOT NULL,
  leaf INTEGER NOT NULL,
  topic TEXT NOT NULL,
  correlation_id TEXT NOT NULL,
  mode TEXT NOT NULL CHECK (mode IN ('one', 'all')),
  open INTEGER NOT NULL CHECK (open IN (0, 1)),
  UNIQUE (flow, wait_id, leaf)
) STRICT;

CREATE INDEX waiters_by_pair ON waiters (topic, correlation_id, n);
CREATE UNIQUE INDEX one_waiter_per_pair ON waiters (topic, correlation_id) WHERE open = 1 AND mode = 'one';

-- One row for each message taken in: its identity, what became of it, and what a repeat is answered with.
CREATE TABLE inbox (
  n INTEGER PRIMARY KEY,
  scope TEXT,
  key TEXT,
  digest BLOB NOT NULL,
  outcome TEXT NOT NULL CHECK (outcome IN (
    'applied', 'resumed', 'progressed', 'held', 'duplicate', 'conflict', 'late', 'expired', 'flow_mismatch', 'rejected', 'dead'
  )),
  result BLOB NOT NULL,
  source TEXT NOT NULL,
  source_seq INTEGER,
  at_us INTEGER NOT NULL,
  CHECK ((scope IS NULL) = (key IS NULL))
) STRICT;

CREATE UNIQUE INDEX inbox_by_key ON inbox (scope, key) WHERE key IS NOT NULL;
-- With the digest: a stream that was deleted and made again counts from 1 once more, and its new messages are not the old ones.
CREATE UNIQUE INDEX inbox_by_place ON inbox (source, source_seq, digest) WHERE source_seq IS NOT NULL;
CREATE INDEX inbox_of_requests ON inbox (at_us) WHERE source_seq IS NULL;

CREATE TABLE held (
  n INTEGER PRIMARY KEY,
  topic TEXT NOT NULL,
  correlation_id TEXT NOT NULL,
  event_id TEXT NOT NULL,
  payload_json TEXT NOT NULL,
  arrived_us INTEGER NOT NULL,
  expires_us INTEGER NOT NULL,
  key TEXT NOT NULL UNIQUE,
  flow_id TEXT,
  trace TEXT
) STRICT;

CREATE INDEX held_by_pair ON held (topic, correlation_id, arrived_us, n);
CREATE INDEX held_by_expiry ON held (expires_us);

CREATE TABLE dead_letters (
  n INTEGER PRIMARY KEY AUTOINCREMENT,
  reason TEXT NOT NULL,
  message TEXT NOT NULL,
  subject TEXT NOT NULL,
  stream TEXT NOT NULL,
  seq INTEGER,
  headers_json TEXT NOT NULL,
  body BLOB NOT NULL,
  at_us INTEGER NOT NULL
) STRICT;

-- Messages to delegates, committed with the change that sends them; a row goes when its message was sent, or its wait is over.
CREATE TABLE outgoing (
  n INTEGER PRIMARY KEY AUTOINCREMENT,
  flow INTEGER NOT NULL REFERENCES flows (n),
  wait_id INTEGER NOT NULL,
  kind TEXT NOT NULL CHECK (kind IN ('request', 'cancel')),
  subject TEXT NOT NULL,
  reply TEXT,
  headers_json TEXT NOT NULL,
  body BLOB NOT NULL,
  next_us INTEGER NOT NULL,
  attempts INTEGER NOT NULL DEFAULT 0,
  UNIQUE (flow, wait_id, kind)
) STRICT;

CREATE INDEX outgoing_by_time ON outgoing (next_us, n);

-- Up to which row each outlet is stored by the broker.
CREATE TABLE published (
  outlet TEXT PRIMARY KEY CHECK (outlet IN ('events', 'dead_letters')),
  n INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

INSERT INTO published (outlet, n) VALUES ('events', 0), ('dead_letters', 0);

CREATE TABLE counters (
  name TEXT PRIMARY KEY,
  value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- How often a message was begun without an outcome: a message that kills the process is found by this.
CREATE TABLE attempts (
  source TEXT NOT NULL,
  seq INTEGER NOT NULL,
  attempts INTEGER NOT NULL,
  PRIMARY KEY (source, seq)
) STRICT, WITHOUT ROWID;
