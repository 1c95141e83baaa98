-- What corpora need: manifests, what each tenant gave to each, tombstones, and tenants that were deleted.

ALTER TABLE tenants
    ADD COLUMN deleted_at timestamptz,
    ADD CHECK (deleted_at IS NULL OR NOT learning_loop_enabled);
COMMENT ON COLUMN tenants.deleted_at IS 'The row stays, so that the key is never given again.';

CREATE TABLE corpus_manifests (
    corpus_id  text PRIMARY KEY CHECK (corpus_id <> ''),
    kind       text NOT NULL,
    scope      text NOT NULL,
    url        text NOT NULL,
    position   text NOT NULL,
    manifest   jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX corpus_manifests_newest ON corpus_manifests (kind, scope, created_at);
COMMENT ON TABLE corpus_manifests IS 'A corpus that was written: its account as run-metadata.json has it. '
    'It names no tenant and no memory, only their pseudonyms.';

CREATE TABLE corpus_tenants (
    tenant_id text NOT NULL REFERENCES tenants,
    corpus_id text NOT NULL REFERENCES corpus_manifests,
    builds    bigint NOT NULL DEFAULT 1,
    examples  bigint NOT NULL,
    tokens    bigint NOT NULL,
    rejected  jsonb NOT NULL CHECK (jsonb_typeof(rejected) = 'object'),
    PRIMARY KEY (tenant_id, corpus_id)
);
COMMENT ON TABLE corpus_tenants IS 'What a tenant gave to a corpus, and what was left out of it by each stage. '
    'The same bytes built again are the same corpus.';

CREATE TABLE corpus_tombstones (
    tenant_id  text NOT NULL REFERENCES tenants,
    memory_id  bigint NOT NULL CHECK (memory_id >= 0),
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, memory_id)
);
COMMENT ON TABLE corpus_tombstones IS 'What was deleted, and may be in corpora that were written before: a memory, '
    'or as memory 0 the tenant.';

-- By a trigger, so that no way of deleting a memory goes without a tombstone. A memory that moves to another
-- partition is not deleted: that is done on the partitions, not on the table.
CREATE FUNCTION leave_tombstones() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO corpus_tombstones (tenant_id, memory_id)
    SELECT tenant_id, memory_id FROM gone ON CONFLICT DO NOTHING;
    RETURN NULL;
END
$$;
CREATE TRIGGER leave_tombstones AFTER DELETE ON memories
    REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION leave_tombstones();

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['corpus_tenants', 'corpus_tombstones'] LOOP
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
GRANT INSERT ON corpus_tombstones TO somabrain_tenant, somabrain_operator;
GRANT SELECT, INSERT, UPDATE ON corpus_manifests TO somabrain_operator;
GRANT INSERT, UPDATE ON corpus_tenants TO somabrain_operator;
GRANT UPDATE (deleted_at) ON tenants TO somabrain_operator;
-- What a tenant asked is its text like its memories, and no hash holds it.
GRANT UPDATE (query, asker) ON recalls TO somabrain_operator;
