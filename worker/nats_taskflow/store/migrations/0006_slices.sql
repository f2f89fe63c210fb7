-- Schema 6. What a flow's end brings about may be more than one transaction should do: watchers and children, some at a time.

-- Ended flows that some of their watchers, and of their children where `cascade` is 1, have not been told of yet.
CREATE TABLE ends (
  flow INTEGER PRIMARY KEY REFERENCES flows (n),
  cascade INTEGER NOT NULL CHECK (cascade = 0 OR cascade = 1),
  trace TEXT
) STRICT;

-- Only children that have not ended are looked for, in the order in which they were started.
DROP INDEX flows_by_parent;

CREATE INDEX flows_by_parent ON flows (parent_id, n)
WHERE parent_id IS NOT NULL AND (status = 'created' OR status = 'running' OR status = 'waiting') AND set_aside IS NULL;

-- A waiting flow whose cancellation was requested goes at the next tick, whatever that tick's clock says.
CREATE INDEX flows_leaving ON flows (due_us) WHERE due_us IS NOT NULL AND cancel_requested = 1;

-- Of which generation of the source it was: a stream or consumer that is made again counts from 1 once more.
ALTER TABLE attempts ADD COLUMN born TEXT NOT NULL DEFAULT '';
