-- Schema 7. Who reaches whom.

-- A request to a delegate is kept until its wait is over: the stream that captures it may refuse it after it was sent.

ALTER TABLE outgoing ADD COLUMN is_sent INTEGER NOT NULL DEFAULT 0 CHECK (is_sent = 0 OR is_sent = 1);

-- Part of the message's id, known to the worker and the delegate alone: nobody can use the id up before them. Messages that are there
-- already may have been sent under an id without.
ALTER TABLE outgoing ADD COLUMN nonce TEXT NOT NULL DEFAULT '';

DROP INDEX outgoing_by_time;

CREATE INDEX outgoing_by_time ON outgoing (next_us, n) WHERE is_sent = 0;

-- Of the held replies of a tenant: how many each topic has. Where the tenant is over its quota, the topic that holds most pays.
CREATE TABLE held_topics (
  tenant TEXT NOT NULL,
  topic TEXT NOT NULL,
  held INTEGER NOT NULL CHECK (held >= 0),
  PRIMARY KEY (tenant, topic)
) STRICT, WITHOUT ROWID;

CREATE INDEX held_topics_by_size ON held_topics (tenant, held);

INSERT INTO held_topics (tenant, topic, held) SELECT tenant, topic, count(*) FROM held GROUP BY tenant, topic;

CREATE TRIGGER held_topic_more AFTER INSERT ON held BEGIN
  INSERT INTO held_topics (tenant, topic, held) VALUES (new.tenant, new.topic, 1)
  ON CONFLICT (tenant, topic) DO UPDATE SET held = held + 1; END;

CREATE TRIGGER held_topic_less AFTER DELETE ON held BEGIN
  UPDATE held_topics SET held = held - 1 WHERE tenant = old.tenant AND topic = old.topic
  ; DELETE FROM held_topics WHERE tenant = old.tenant AND topic = old.topic AND held = 0; END;

DROP INDEX held_by_tenant;

CREATE INDEX held_by_topic ON held (tenant, topic, expires_us, n);
