-- What retention needs: what was pruned and when, the seals of rows that are gone, and legal holds.

CREATE TABLE prunings (
    pruning_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    relation   text NOT NULL CHECK (relation IN ('feedback_events', 'recalls', 'token_usage')),
    partition  text NOT NULL,
    begins     timestamptz NOT NULL,
    ends       timestamptz NOT NULL CHECK (ends > begins),
    actor      text NOT NULL,
    decided_at timestamptz NOT NULL,
    tenants    bigint NOT NULL,
    rows       bigint NOT NULL,
    bytes      bigint NOT NULL,
    kept_rows  bigint,
    dropped_at timestamptz,
    CHECK ((kept_rows IS NULL) = (dropped_at IS NULL))
);
CREATE UNIQUE INDEX one_pruning_at_a_time ON prunings (relation, begins) WHERE dropped_at IS NULL;
COMMENT ON TABLE prunings IS 'A partition that was old enough, the one decision about it, and when it was carried out. '
    'Until dropped_at its rows are there still.';

CREATE TABLE seals (
    tenant_id  text NOT NULL REFERENCES tenants,
    pruning_id bigint NOT NULL REFERENCES prunings,
    relation   text NOT NULL,
    begins     timestamptz NOT NULL,
    ends       timestamptz NOT NULL,
    rows       bigint NOT NULL CHECK (rows > 0),
    first_id   bigint NOT NULL,
    last_id    bigint NOT NULL,
    root       bytea NOT NULL CHECK (octet_length(root) = 32),
    PRIMARY KEY (tenant_id, pruning_id)
);
CREATE INDEX seals_by_pruning ON seals (pruning_id);
COMMENT ON TABLE seals IS 'What stands for a tenant''s rows that were pruned: how many landed from begins to before '
    'ends, their first and last number, and the Merkle root over the digests of all of them in this order.';

CREATE TABLE legal_holds (
    tenant_id  text PRIMARY KEY REFERENCES tenants,
    placed_at  timestamptz NOT NULL DEFAULT now(),
    actor      text NOT NULL,
    reason     text NOT NULL CHECK (reason <> '')
);
COMMENT ON TABLE legal_holds IS 'A tenant none of whose rows is pruned while the hold is there.';

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['seals', 'legal_holds'] LOOP
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
GRANT SELECT ON prunings TO somabrain_operator;
GRANT INSERT, DELETE ON legal_holds TO somabrain_operator;

-- Keys are deleted by age: their rows lie in the order of time, so a few bytes a megabyte find them.
CREATE INDEX idempotency_keys_by_time ON idempotency_keys USING brin (created_at);
