-- What the service needs: API keys, the weights that are promoted to all tenants, experiments whose arms it can
-- assign, and notifications by which every process knows that what it holds in memory is old.

CREATE TABLE api_keys (
    tenant_id   text NOT NULL CHECK (tenant_id = '_system' OR tenant_id ~ '^[a-z0-9][a-z0-9._-]{0,62}$'),
    key_id      text NOT NULL CHECK (key_id ~ '^[0-9a-f]{16}$'),
    scope       text NOT NULL CHECK (scope IN ('tenant', 'read_only', 'operator')),
    secret_hash bytea NOT NULL CHECK (octet_length(secret_hash) = 32),
    created_at  timestamptz NOT NULL DEFAULT now(),
    revoked_at  timestamptz,
    used_at     timestamptz,
    PRIMARY KEY (tenant_id, key_id),
    CHECK ((scope = 'operator') = (tenant_id = '_system'))
);
CREATE INDEX api_keys_by_id ON api_keys (key_id);
COMMENT ON TABLE api_keys IS 'Who may ask the service for what. Of a secret only its SHA-256 is kept.';

CREATE TABLE experiments (
    experiment_id text PRIMARY KEY CHECK (experiment_id ~ '^[a-z0-9][a-z0-9._-]{0,62}$'),
    created_at    timestamptz NOT NULL DEFAULT now(),
    salt          text NOT NULL,
    arms          text[] NOT NULL CHECK (cardinality(arms) > 1),
    shares        double precision[] NOT NULL CHECK (cardinality(shares) = cardinality(arms))
);
COMMENT ON TABLE experiments IS 'An experiment: its arms and the share of the units that each is given.';

CREATE TABLE promotions (
    version          bigint PRIMARY KEY CHECK (version > 0),
    created_at       timestamptz NOT NULL DEFAULT now(),
    actor            text NOT NULL,
    experiment_id    text REFERENCES experiments,
    registry_version smallint NOT NULL,
    before           bigint[] NOT NULL,
    weights          bigint[] NOT NULL,
    CHECK (cardinality(before) = cardinality(weights))
);
COMMENT ON TABLE promotions IS 'Weights that were promoted to all tenants, in nano-units. Each tenant''s log has '
    'one shift for each, weights − before; the newest row is what is promoted now.';

GRANT SELECT ON experiments, promotions TO somabrain_tenant, somabrain_operator;
GRANT INSERT ON experiments, promotions TO somabrain_operator;
GRANT UPDATE (shares) ON experiments TO somabrain_operator;

ALTER TABLE weight_changes ADD COLUMN promotion bigint;
COMMENT ON COLUMN weight_changes.promotion IS 'The version of the promotion that the change carries out.';

-- As before for rows without a promotion. Frames are read off one by one: the second one behind
-- restored_version is a promotion.
CREATE OR REPLACE FUNCTION weight_change_hash(previous bytea, change weight_changes) RETURNS bytea
LANGUAGE sql STABLE PARALLEL SAFE
RETURN sha256(
    previous
    || framed(convert_to(change.tenant_id, 'UTF8'))
    || framed(int8send(change.version))
    || framed(timestamptz_send(change.created_at))
    || framed(convert_to(change.cause, 'UTF8'))
    || framed(array_send(change.shift))
    || framed(array_send(change.low))
    || framed(array_send(change.high))
    || framed(array_send(change.after))
    || framed(int2send(change.registry_version))
    || framed(change.configuration)
    || framed(int8send(change.event_seq))
    || framed(change.event_digest)
    || framed(int8send(change.restored_version))
    || CASE
        WHEN change.promotion IS NOT NULL
            THEN framed(int8send(change.recall_id)) || framed(int8send(change.promotion))
        WHEN change.recall_id IS NOT NULL THEN framed(int8send(change.recall_id))
        ELSE ''::bytea
    END
);

ALTER TABLE api_keys ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY own_tenants ON api_keys TO somabrain_tenant
    USING (tenant_id = ANY ((SELECT string_to_array(current_setting('app.tenants', true), ','))::text[]));
CREATE POLICY all_tenants ON api_keys TO somabrain_operator USING (true);
GRANT SELECT (tenant_id, key_id, scope, created_at, revoked_at, used_at) ON api_keys TO somabrain_tenant;
GRANT SELECT, INSERT, UPDATE (revoked_at, used_at) ON api_keys TO somabrain_operator;

-- Word of every new state, from the transaction that wrote it, whoever wrote it: a listener hears of it when it
-- is committed and never otherwise. A payload holds at most 8000 bytes, a hundred tenants less. Committing a
-- notification takes a lock of the whole server, so what is no new version is not announced.
CREATE FUNCTION notify_states() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('somabrain_states', string_agg(tenant_id || ':' || version, ','))
    FROM (
        SELECT n.tenant_id, n.version, (row_number() OVER () - 1) / 100 AS part
        FROM fresh n JOIN stale o USING (tenant_id) WHERE n.version <> o.version
    ) AS numbered
    GROUP BY part;
    RETURN NULL;
END
$$;
CREATE TRIGGER notify_states AFTER UPDATE ON adaptation_states
    REFERENCING OLD TABLE AS stale NEW TABLE AS fresh FOR EACH STATEMENT EXECUTE FUNCTION notify_states();

CREATE FUNCTION notify_new_states() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('somabrain_states', string_agg(tenant_id || ':' || version, ','))
    FROM (SELECT tenant_id, version, (row_number() OVER () - 1) / 100 AS part FROM fresh) AS numbered
    GROUP BY part;
    RETURN NULL;
END
$$;
CREATE TRIGGER notify_new_states AFTER INSERT ON adaptation_states
    REFERENCING NEW TABLE AS fresh FOR EACH STATEMENT EXECUTE FUNCTION notify_new_states();

CREATE FUNCTION notify_key() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('somabrain_keys', NEW.key_id);
    RETURN NULL;
END
$$;
CREATE TRIGGER notify_key AFTER INSERT OR UPDATE OF revoked_at ON api_keys
    FOR EACH ROW EXECUTE FUNCTION notify_key();

-- How many changes answer no feedback is asked at every scrape of the metrics.
CREATE INDEX weight_changes_adjusting ON weight_changes (tenant_id, cause) WHERE cause NOT IN ('feedback', 'start');
