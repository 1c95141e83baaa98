-- The spine: tenants and their configurations, memories and links, recalls, feedback, token usage,
-- the log of weight changes and the states that it folds to, the audit trail, idempotency keys, marks.
--
-- Every key of a tenant's table begins with tenant_id, so that a distributed Postgres can shard by it.
-- Two times: created_at is the landing (partitions, retention), occurred_at the event's own (trends, as_of).

CREATE TABLE tenants (
    tenant_id             text PRIMARY KEY CHECK (tenant_id ~ '^[a-z0-9][a-z0-9._-]{0,62}$'),
    created_at            timestamptz NOT NULL DEFAULT now(),
    learning_loop_enabled boolean NOT NULL DEFAULT false,
    overrides             jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(overrides) = 'object')
);
COMMENT ON TABLE tenants IS 'A tenant. Keys are never reused.';

CREATE TABLE configurations (
    digest     bytea PRIMARY KEY CHECK (octet_length(digest) = 32),
    body       jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE configurations IS
    'The learning configurations that weight changes name, by SHA-256 of their canonical JSON.';

CREATE SEQUENCE memory_ids;

CREATE TABLE memories (
    tenant_id       text NOT NULL REFERENCES tenants,
    memory_id       bigint NOT NULL DEFAULT nextval('memory_ids'),
    created_at      timestamptz NOT NULL DEFAULT now(),
    occurred_at     timestamptz NOT NULL,
    namespace       text NOT NULL DEFAULT '',
    conversation_id text,
    speaker         text,
    text            text NOT NULL CHECK (text <> ''),
    payload         jsonb NOT NULL DEFAULT '{}',
    content_digest  bytea NOT NULL CHECK (octet_length(content_digest) = 32),
    PRIMARY KEY (tenant_id, memory_id),
    UNIQUE (tenant_id, content_digest)
) PARTITION BY LIST (tenant_id);
COMMENT ON TABLE memories IS
    'A memory. Tenants share the default partition; a large one gets a partition of its own.';
CREATE TABLE memories_default PARTITION OF memories DEFAULT;
CREATE INDEX memories_by_time ON memories (tenant_id, occurred_at);

CREATE TABLE memory_links (
    tenant_id   text NOT NULL,
    source_id   bigint NOT NULL,
    target_id   bigint NOT NULL,
    kind        text NOT NULL DEFAULT 'related' CHECK (kind <> ''),
    weight      double precision NOT NULL CHECK (weight > 0 AND weight < 'infinity'),
    created_at  timestamptz NOT NULL DEFAULT now(),
    occurred_at timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, source_id, target_id, kind),
    FOREIGN KEY (tenant_id, source_id) REFERENCES memories ON DELETE CASCADE,
    FOREIGN KEY (tenant_id, target_id) REFERENCES memories ON DELETE CASCADE,
    CHECK (source_id <> target_id)
);
CREATE INDEX memory_links_by_target ON memory_links (tenant_id, target_id);
COMMENT ON TABLE memory_links IS 'A weighted directed link between two memories of one tenant.';

CREATE SEQUENCE recall_ids;

CREATE TABLE recalls (
    tenant_id        text NOT NULL,
    recall_id        bigint NOT NULL DEFAULT nextval('recall_ids'),
    created_at       timestamptz NOT NULL DEFAULT now(),
    occurred_at      timestamptz NOT NULL,
    session_id       text,
    query            text NOT NULL,
    mode             text NOT NULL CHECK (mode IN ('rank', 'sample')),
    arm              text,
    weights_version  bigint NOT NULL,
    weights          bigint[] NOT NULL,
    scale_version    integer NOT NULL,
    registry_version smallint NOT NULL,
    candidate_ids    bigint[] NOT NULL,
    features         double precision[] NOT NULL,
    propensities     double precision[] NOT NULL,
    expected         double precision[] NOT NULL,
    hits             bigint[] NOT NULL,
    governed_margin  double precision,
    cleanup_backend  text NOT NULL CHECK (cleanup_backend IN ('exact', 'hnsw')),
    PRIMARY KEY (tenant_id, recall_id, created_at)
) PARTITION BY RANGE (created_at);
COMMENT ON TABLE recalls IS 'A recall as it was made: candidates, scaled features (row-major, one row a candidate), '
    'policy, the policy''s expected features, and the weights in force (arm included).';

CREATE TABLE feedback_events (
    tenant_id       text NOT NULL,
    seq             bigint NOT NULL CHECK (seq > 0),
    created_at      timestamptz NOT NULL,
    occurred_at     timestamptz NOT NULL,
    session_id      text NOT NULL,
    source          text NOT NULL,
    utility         double precision NOT NULL CHECK (utility BETWEEN -1 AND 1),
    reward          double precision CHECK (reward BETWEEN -1 AND 1),
    recall_id       bigint,
    label           text CHECK (label IN ('full', 'bandit')),
    helpful         jsonb CHECK (jsonb_typeof(helpful) = 'array'),
    arm             text,
    metadata        jsonb NOT NULL CHECK (jsonb_typeof(metadata) = 'object'),
    delta           double precision NOT NULL,
    dopamine        double precision NOT NULL,
    serotonin       double precision NOT NULL,
    noradrenaline   double precision NOT NULL,
    acetylcholine   double precision NOT NULL,
    reward_mean     double precision NOT NULL,
    reward_variance double precision NOT NULL,
    digest          bytea NOT NULL CHECK (octet_length(digest) = 32),
    PRIMARY KEY (tenant_id, seq, created_at),
    CHECK ((helpful IS NULL) OR (recall_id IS NOT NULL))
) PARTITION BY RANGE (created_at);
CREATE INDEX feedback_events_by_session ON feedback_events (session_id, created_at);
CREATE INDEX feedback_events_by_time ON feedback_events (tenant_id, occurred_at);
COMMENT ON TABLE feedback_events IS 'What was said of a recall or a session, with the neuromodulators it met. '
    'seq is the tenant''s own: gap-free, given under the lock of its adaptation state, hence in commit order.';

CREATE SEQUENCE token_usage_ids;

CREATE TABLE token_usage (
    tenant_id   text NOT NULL,
    usage_id    bigint NOT NULL DEFAULT nextval('token_usage_ids'),
    created_at  timestamptz NOT NULL DEFAULT now(),
    occurred_at timestamptz NOT NULL,
    session_id  text NOT NULL,
    tokens      bigint NOT NULL CHECK (tokens >= 0),
    tokenizer   text NOT NULL,
    PRIMARY KEY (tenant_id, usage_id, created_at)
) PARTITION BY RANGE (created_at);
CREATE INDEX token_usage_by_session ON token_usage (session_id);
COMMENT ON TABLE token_usage IS 'Tokens that a session used, and whose count it is.';

CREATE TABLE weight_changes (
    tenant_id        text NOT NULL REFERENCES tenants,
    version          bigint NOT NULL CHECK (version >= 0),
    created_at       timestamptz NOT NULL,
    cause            text NOT NULL,
    shift            bigint[] NOT NULL,
    low              bigint[],
    high             bigint[],
    after            bigint[] NOT NULL,
    registry_version smallint NOT NULL,
    configuration    bytea NOT NULL CHECK (octet_length(configuration) = 32),
    event_seq        bigint,
    event_digest     bytea CHECK (octet_length(event_digest) = 32),
    restored_version bigint,
    hash             bytea NOT NULL CHECK (octet_length(hash) = 32),
    PRIMARY KEY (tenant_id, version),
    CHECK ((low IS NULL) = (high IS NULL)),
    CHECK ((event_seq IS NULL) = (event_digest IS NULL))
);
CREATE INDEX weight_changes_by_event ON weight_changes (tenant_id, event_seq) WHERE event_seq IS NOT NULL;
COMMENT ON TABLE weight_changes IS 'What learning did: a clipped shift in nano-units; append-only, never pruned. '
    'low and high are null where they are the bounds of the configuration that the row names.';

CREATE TABLE adaptation_states (
    tenant_id       text PRIMARY KEY REFERENCES tenants,
    version         bigint NOT NULL,
    weights         bigint[] NOT NULL,
    hash            bytea NOT NULL,
    configuration   bytea NOT NULL,
    feedback_seq    bigint NOT NULL,
    delta           double precision NOT NULL,
    dopamine        double precision NOT NULL,
    serotonin       double precision NOT NULL,
    noradrenaline   double precision NOT NULL,
    acetylcholine   double precision NOT NULL,
    reward_mean     double precision NOT NULL,
    reward_variance double precision NOT NULL,
    recent_rewards  bigint[] NOT NULL,
    updated_at      timestamptz NOT NULL
) WITH (fillfactor = 50);
COMMENT ON TABLE adaptation_states IS 'The fold of a tenant''s weight changes, now; written with the change. '
    'recent_rewards are micro-units, oldest first: what the rollback guard looks back on.';

CREATE TABLE audit_events (
    tenant_id  text NOT NULL CHECK (tenant_id = '_system' OR tenant_id ~ '^[a-z0-9][a-z0-9._-]{0,62}$'),
    version    bigint NOT NULL CHECK (version >= 0),
    created_at timestamptz NOT NULL,
    actor      text NOT NULL,
    action     text NOT NULL,
    body       jsonb NOT NULL,
    hash       bytea NOT NULL CHECK (octet_length(hash) = 32),
    PRIMARY KEY (tenant_id, version)
);
COMMENT ON TABLE audit_events IS 'Everything besides weights that changes behaviour; a hash chain a tenant.';

CREATE TABLE idempotency_keys (
    tenant_id  text NOT NULL,
    key        text NOT NULL,
    digest     bytea NOT NULL CHECK (octet_length(digest) = 32),
    seq        bigint NOT NULL,
    version    bigint NOT NULL,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, key)
);
COMMENT ON TABLE idempotency_keys IS 'A key that was used: the digest of what it said, and the event and version it got.';

CREATE TABLE log_marks (
    tenant_id    text NOT NULL REFERENCES tenants,
    consumer     text NOT NULL,
    version      bigint NOT NULL,
    hash         bytea NOT NULL,
    feedback_seq bigint NOT NULL,
    marked_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, consumer)
);
COMMENT ON TABLE log_marks IS 'How far a consumer has followed a tenant''s log. A mark whose hash is not the '
    'log''s at that version tells of a log that was rewound.';

CREATE TABLE feedback_daily (
    tenant_id          text NOT NULL REFERENCES tenants,
    day                date NOT NULL,
    events             bigint NOT NULL,
    sessions           bigint NOT NULL,
    utility_sum        double precision NOT NULL,
    utility_square_sum double precision NOT NULL,
    reward_sum         double precision NOT NULL,
    reward_square_sum  double precision NOT NULL,
    aggregated_at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, day)
);
CREATE INDEX feedback_daily_by_day ON feedback_daily (day);
COMMENT ON TABLE feedback_daily IS 'Sufficient statistics of a tenant''s feedback by the day it is about (UTC).';

-- Weekly partitions from this week to eight weeks ahead. Anyone may ask for them: it takes no argument, adds
-- only what time will need, and so spares a landing from failing because nobody had made next week.
CREATE FUNCTION ensure_partitions() RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    parent text;
    week   timestamp;
    name   text;
    made   integer := 0;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('ensure_partitions'));
    FOREACH parent IN ARRAY ARRAY['recalls', 'feedback_events', 'token_usage'] LOOP
        FOR ahead IN 0..8 LOOP
            week := date_trunc('week', now() AT TIME ZONE 'UTC') + make_interval(weeks => ahead);
            name := parent || to_char(week, '_IYYY"w"IW');
            IF to_regclass(name) IS NULL THEN
                EXECUTE format('CREATE TABLE %I PARTITION OF %I FOR VALUES FROM (%L) TO (%L)', name, parent,
                    week AT TIME ZONE 'UTC', (week + interval '1 week') AT TIME ZONE 'UTC');
                made := made + 1;
            END IF;
        END LOOP;
    END LOOP;
    RETURN made;
END
$$;
SELECT ensure_partitions();

-- The hash of a weight change: SHA-256 over the previous hash and each column in its binary form, preceded by
-- its length (−1 for null), so that no two rows read alike.
CREATE FUNCTION framed(field bytea) RETURNS bytea LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN field IS NULL THEN int4send(-1) ELSE int4send(octet_length(field)) || field END;

CREATE FUNCTION weight_change_hash(previous bytea, change weight_changes) RETURNS bytea
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
);

-- Three kinds of people. The owner migrates. A tenant role sees the tenants named in app.tenants and nothing else;
-- an operator role sees all. Neither owns anything, neither can bypass row security, and neither can change or
-- delete what was logged.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'somabrain_tenant') THEN
        CREATE ROLE somabrain_tenant NOLOGIN NOBYPASSRLS;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'somabrain_operator') THEN
        CREATE ROLE somabrain_operator NOLOGIN NOBYPASSRLS;
    END IF;
    EXECUTE format('GRANT somabrain_tenant, somabrain_operator TO %I', current_user);
END
$$;

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY[
        'tenants', 'memories', 'memory_links', 'recalls', 'feedback_events', 'token_usage', 'weight_changes',
        'adaptation_states', 'audit_events', 'idempotency_keys', 'log_marks', 'feedback_daily'
    ] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', name);
        -- The sub-select makes the list of tenants a value computed once a query instead of once a row.
        EXECUTE format($policy$
            CREATE POLICY own_tenants ON %I TO somabrain_tenant
            USING (tenant_id = ANY ((SELECT string_to_array(current_setting('app.tenants', true), ','))::text[]))
        $policy$, name);
        EXECUTE format('CREATE POLICY all_tenants ON %I TO somabrain_operator USING (true)', name);
        EXECUTE format('GRANT SELECT ON %I TO somabrain_tenant, somabrain_operator', name);
    END LOOP;
END
$$;
GRANT SELECT, INSERT ON configurations TO somabrain_tenant, somabrain_operator;
GRANT INSERT ON recalls, feedback_events, token_usage, weight_changes, audit_events, idempotency_keys
    TO somabrain_tenant, somabrain_operator;
GRANT INSERT, UPDATE, DELETE ON memories, memory_links TO somabrain_tenant, somabrain_operator;
GRANT UPDATE ON adaptation_states TO somabrain_tenant, somabrain_operator;
GRANT INSERT ON tenants, adaptation_states TO somabrain_operator;
GRANT UPDATE (learning_loop_enabled, overrides) ON tenants TO somabrain_operator;
GRANT INSERT, UPDATE, DELETE ON log_marks, feedback_daily TO somabrain_operator;
GRANT USAGE ON SEQUENCE memory_ids, recall_ids, token_usage_ids TO somabrain_tenant, somabrain_operator;

CREATE VIEW weights WITH (security_invoker = true) AS
SELECT
    tenant_id, version, updated_at,
    (weights[1] * 0.000000001)::numeric(12, 9) AS alpha,
    (weights[2] * 0.000000001)::numeric(12, 9) AS beta,
    (weights[3] * 0.000000001)::numeric(12, 9) AS gamma,
    (weights[4] * 0.000000001)::numeric(12, 9) AS delta,
    (weights[5] * 0.000000001)::numeric(12, 9) AS epsilon,
    (weights[6] * 0.000000001)::numeric(12, 9) AS zeta,
    (weights[7] * 0.000000001)::numeric(12, 9) AS tau,
    (weights[8] * 0.000000001)::numeric(12, 9) AS lambda,
    (weights[9] * 0.000000001)::numeric(12, 9) AS mu,
    (weights[10] * 0.000000001)::numeric(12, 9) AS nu
FROM adaptation_states;
COMMENT ON VIEW weights IS 'Each tenant''s weights as exact decimals.';
GRANT SELECT ON weights TO somabrain_tenant, somabrain_operator;
