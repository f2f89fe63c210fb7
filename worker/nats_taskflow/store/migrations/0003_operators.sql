-- Schema 3. What operators look flows and replies up by, what became of dead letters, and what operators did.

CREATE INDEX flows_by_controller ON flows (controller_id, n);

-- The oldest wait first.
CREATE INDEX flows_parked ON flows (parked_us, n) WHERE parked_us IS NOT NULL;

CREATE INDEX flows_set_aside ON flows (n) WHERE set_aside IS NOT NULL;

CREATE INDEX waiters_open ON waiters (topic, flow) WHERE open = 1;

-- The same correlation id on another topic is how a reply most often misses its wait.
CREATE INDEX held_by_correlation ON held (correlation_id);

-- How often a dead letter was published again, when last, and by whom.
ALTER TABLE dead_letters ADD COLUMN replays INTEGER NOT NULL DEFAULT 0 CHECK (replays >= 0);

ALTER TABLE dead_letters ADD COLUMN replayed_us INTEGER;

ALTER TABLE dead_letters ADD COLUMN replayed_by TEXT;

-- Groups are counted in this index alone; bodies lie elsewhere.
CREATE INDEX dead_letters_by_reason ON dead_letters (reason, n);

CREATE INDEX dead_letters_by_subject ON dead_letters (subject, reason, replays, at_us);

CREATE INDEX dead_letters_by_place ON dead_letters (stream, seq) WHERE seq IS NOT NULL;

-- What operators did besides changing flows, which is in the flows' journals: who, what, why.
CREATE TABLE interventions (
  n INTEGER PRIMARY KEY AUTOINCREMENT,
  at_us INTEGER NOT NULL,
  actor TEXT NOT NULL,
  verb TEXT NOT NULL,
  about TEXT NOT NULL,
  reason TEXT NOT NULL
) STRICT;

-- Where purged letters came from, as long as their messages are remembered: that such a message left no letter is then no defect.
CREATE TABLE purged_letters (
  stream TEXT NOT NULL,
  seq INTEGER NOT NULL,
  PRIMARY KEY (stream, seq)
) STRICT, WITHOUT ROWID;
