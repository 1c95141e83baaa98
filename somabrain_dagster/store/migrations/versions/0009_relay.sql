-- What the relay and the seals need: how far each log was published, and the heads of all chains at an instant.

CREATE TABLE relay_marks (
    tenant_id text NOT NULL CHECK (tenant_id = '_system' OR tenant_id ~ '^[a-z0-9][a-z0-9._-]{0,62}$'),
    log       text NOT NULL CHECK (log IN ('audit_events', 'weight_changes', 'feedback_events')),
    version   bigint NOT NULL CHECK (version >= 0),
    hash      bytea NOT NULL CHECK (octet_length(hash) = 32),
    marked_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, log)
);
COMMENT ON TABLE relay_marks IS 'Up to where a tenant''s log was published: every row up to this version is with '
    'Kafka, acknowledged. A mark whose hash is not the log''s at its version tells of a log that was rewound.';

CREATE TABLE audit_seals (
    seal      bigint PRIMARY KEY CHECK (seal > 0),
    sealed_at timestamptz NOT NULL,
    chains    bigint NOT NULL CHECK (chains > 0),
    root      bytea NOT NULL CHECK (octet_length(root) = 32)
);
COMMENT ON TABLE audit_seals IS 'The Merkle root over the heads of all hash chains at an instant, numbered from 1.';

CREATE TABLE audit_seal_heads (
    tenant_id text NOT NULL CHECK (tenant_id = '_system' OR tenant_id ~ '^[a-z0-9][a-z0-9._-]{0,62}$'),
    log       text NOT NULL CHECK (log IN ('audit_events', 'weight_changes')),
    seal      bigint NOT NULL REFERENCES audit_seals,
    version   bigint NOT NULL CHECK (version >= 0),
    hash      bytea NOT NULL CHECK (octet_length(hash) = 32),
    PRIMARY KEY (tenant_id, log, seal)
);
COMMENT ON TABLE audit_seal_heads IS 'The heads that a seal found moved since the one before; the others are those '
    'of earlier seals.';

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['relay_marks', 'audit_seal_heads'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', name);
        EXECUTE format($policy$
            CREATE POLICY own_tenants ON %I TO somabrain_tenant
            USING (tenant_id = ANY ((SELECT string_to_array(current_setting('app.tenants', true), ','))::text[]))
        $policy$, name);
        EXECUTE format('CREATE POLICY all_tenants ON %I TO somabrain_operator USING (true)', name);
        EXECUTE format('GRANT SELECT ON %I TO somabrain_tenant, somabrain_operator', name);
    END LOOP;
END
$$;
GRANT INSERT, UPDATE (version, hash, marked_at) ON relay_marks TO somabrain_operator;
GRANT SELECT ON audit_seals TO somabrain_tenant;
GRANT SELECT, INSERT ON audit_seals TO somabrain_operator;
GRANT INSERT ON audit_seal_heads TO somabrain_operator;

-- Word of every audit event, when it is committed. Weights and feedback have theirs with the states.
CREATE FUNCTION notify_audit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('somabrain_audit', NEW.tenant_id);
    RETURN NULL;
END
$$;
CREATE TRIGGER notify_audit AFTER INSERT ON audit_events FOR EACH ROW EXECUTE FUNCTION notify_audit();
