-- Schema 2. Held replies have a tenant, whose quota they count against; how many each has is kept by triggers, whoever adds or deletes.

ALTER TABLE held ADD COLUMN tenant TEXT NOT NULL DEFAULT '';

-- Only the bindings know better whose topic it is; what is held now expires within its time to live.
UPDATE held SET tenant = topic;

CREATE INDEX held_by_tenant ON held (tenant, expires_us, n);

CREATE TABLE held_tenants (
  tenant TEXT PRIMARY KEY,
  held INTEGER NOT NULL CHECK (held >= 0)
) STRICT, WITHOUT ROWID;

CREATE INDEX held_tenants_by_size ON held_tenants (held);

INSERT INTO held_tenants (tenant, held) SELECT tenant, count(*) FROM held GROUP BY tenant;

CREATE TRIGGER held_more AFTER INSERT ON held BEGIN
  INSERT INTO held_tenants (tenant, held) VALUES (new.tenant, 1) ON CONFLICT (tenant) DO UPDATE SET held = held + 1; END;

CREATE TRIGGER held_less AFTER DELETE ON held BEGIN
  UPDATE held_tenants SET held = held - 1 WHERE tenant = old.tenant; DELETE FROM held_tenants WHERE tenant = old.tenant AND held = 0; END;
