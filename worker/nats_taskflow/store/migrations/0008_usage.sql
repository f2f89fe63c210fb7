-- Schema 8. What each agent's flows take, for its quotas: how many are open, and the bytes of all their states, of ended ones too.

-- No CHECK: a count that somebody else's hand made wrong must keep no flow from ending.
CREATE TABLE usage (
  agent TEXT PRIMARY KEY,
  open_flows INTEGER NOT NULL,
  state_bytes INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

INSERT INTO usage (agent, open_flows, state_bytes)
SELECT agent, sum(open_flows), sum(state_bytes) FROM (
  SELECT owner_session_key, substr(owner_session_key, 7, instr(substr(owner_session_key, 7), ':') - 1) AS agent,
    sum(status = 'created' OR status = 'running' OR status = 'waiting') AS open_flows, sum(length(CAST(state_json AS BLOB))) AS state_bytes
  FROM flows GROUP BY owner_session_key
)
WHERE substr(owner_session_key, 1, length(agent) + 15) = 'agent:' || agent || ':session:'
GROUP BY agent;
