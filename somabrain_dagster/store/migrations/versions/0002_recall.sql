-- What recall needs: embeddings of one model a tenant, full text, frozen scales of the features, and a log that
-- says of every recall how it came about, steps of τ included.

CREATE EXTENSION IF NOT EXISTS vector;

CREATE TABLE embedding_models (
    model_id   integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name       text NOT NULL CHECK (name <> ''),
    dimension  integer NOT NULL CHECK (dimension BETWEEN 1 AND 8192),
    digest     text NOT NULL UNIQUE CHECK (digest <> ''),
    created_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE embedding_models IS 'Whose vectors may be compared: those of one row, and of no two.';

CREATE TABLE feature_scales (
    version           integer PRIMARY KEY CHECK (version > 0),
    registry_version  smallint NOT NULL,
    scales            double precision[] NOT NULL,
    half_life_seconds double precision NOT NULL CHECK (half_life_seconds > 0),
    measured_from     text NOT NULL,
    created_at        timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE feature_scales IS
    'What each feature is divided by, in the order of the registry; a version never changes.';
INSERT INTO feature_scales (version, registry_version, scales, half_life_seconds, measured_from) VALUES
    (1, 1, '{1, 1, 1, 1, 1, 1}', 3600, 'nothing: each value as it is');

-- One model a tenant: the foreign key of memories below refuses a second one, and refuses to change the first
-- while there are vectors of it.
ALTER TABLE tenants
    ADD COLUMN model_id integer REFERENCES embedding_models,
    ADD COLUMN scale_version integer NOT NULL DEFAULT 1 REFERENCES feature_scales,
    ADD COLUMN cleanup_backend text NOT NULL DEFAULT 'exact' CHECK (cleanup_backend IN ('exact', 'hnsw')),
    ADD UNIQUE (tenant_id, model_id);
COMMENT ON COLUMN tenants.cleanup_backend IS 'Which index serves similarity: hnsw once a partition has one.';

ALTER TABLE memories
    ADD COLUMN embedding vector,
    ADD COLUMN model_id integer,
    ADD COLUMN lexemes tsvector GENERATED ALWAYS AS (
        to_tsvector('english', coalesce(speaker || ': ', '') || text)
    ) STORED,
    ADD CHECK ((embedding IS NULL) = (model_id IS NULL)),
    ADD FOREIGN KEY (tenant_id, model_id) REFERENCES tenants (tenant_id, model_id);
-- An exact search reads every vector of a tenant: it must find them in the row, not one by one elsewhere.
ALTER TABLE memories ALTER COLUMN embedding SET STORAGE MAIN;
ALTER TABLE memories_default ALTER COLUMN embedding SET STORAGE MAIN;
CREATE INDEX memories_without_embedding ON memories (tenant_id, memory_id) WHERE embedding IS NULL;

CREATE TABLE memory_keys (
    tenant_id      text NOT NULL REFERENCES tenants,
    key            text NOT NULL CHECK (key <> ''),
    content_digest bytea NOT NULL CHECK (octet_length(content_digest) = 32),
    created_at     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, key)
);
COMMENT ON TABLE memory_keys IS 'Under which key what was remembered: the same key never stands for two contents.';

ALTER TABLE recalls
    ADD COLUMN k integer,
    ADD COLUMN asker text,
    ADD COLUMN namespaces text[],
    ADD COLUMN since timestamptz,
    ADD COLUMN model_id integer,
    ADD COLUMN sources smallint[],
    ADD COLUMN noradrenaline double precision,
    ADD COLUMN acetylcholine double precision,
    ADD COLUMN recalled bigint[],
    ADD COLUMN repeated integer,
    ADD COLUMN serotonin double precision;
COMMENT ON COLUMN recalls.occurred_at IS 'The as_of of the recall: it saw what is strictly earlier.';
COMMENT ON COLUMN recalls.sources IS
    'What brought each candidate in, a sum of 1 similarity, 2 full text, 4 recency, 8 links alone.';
COMMENT ON COLUMN recalls.noradrenaline IS 'Of the neuromodulators that acted on it; null where none did.';
COMMENT ON COLUMN recalls.recalled IS
    'The last coordinates that the tenant had recalled, these hits included: what a step of τ looked at.';
COMMENT ON COLUMN recalls.repeated IS 'How many of those repeat an earlier one.';

ALTER TABLE adaptation_states ADD COLUMN recalled bigint[];
COMMENT ON COLUMN adaptation_states.recalled IS 'The last coordinates that were recalled, oldest first.';

ALTER TABLE weight_changes ADD COLUMN recall_id bigint;
COMMENT ON COLUMN weight_changes.recall_id IS 'The recall after which τ was steered.';

-- A row without a recall hashes as it always did. A row with one has a frame more; frames are read off one by
-- one, so no row of either kind reads like one of the other.
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
    || CASE WHEN change.recall_id IS NULL THEN ''::bytea ELSE framed(int8send(change.recall_id)) END
);

-- Any of the words, where plainto_tsquery wants them all: a memory rarely has every word of a question.
CREATE FUNCTION any_word(question text) RETURNS tsquery LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN (
    SELECT coalesce(string_agg(
        '''' || replace(replace(lexeme, '\', '\\'), '''', '''''') || '''', ' | '
    ), '')::tsquery
    FROM unnest(tsvector_to_array(to_tsvector('english', question))) AS lexeme
);

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['memory_keys'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', name);
        EXECUTE format($policy$
            CREATE POLICY own_tenants ON %I TO somabrain_tenant
            USING (tenant_id = ANY ((SELECT string_to_array(current_setting('app.tenants', true), ','))::text[]))
        $policy$, name);
        EXECUTE format('CREATE POLICY all_tenants ON %I TO somabrain_operator USING (true)', name);
        EXECUTE format('GRANT SELECT, INSERT ON %I TO somabrain_tenant, somabrain_operator', name);
    END LOOP;
END
$$;
GRANT SELECT, INSERT ON embedding_models TO somabrain_tenant, somabrain_operator;
GRANT SELECT ON feature_scales TO somabrain_tenant, somabrain_operator;
GRANT INSERT ON feature_scales TO somabrain_operator;
GRANT UPDATE (model_id) ON tenants TO somabrain_tenant, somabrain_operator;
GRANT UPDATE (scale_version) ON tenants TO somabrain_operator;
