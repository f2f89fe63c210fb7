-- Schema 6. What follows from the end of a flow may be more than one transaction should do: watchers and children, some at a time.

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
