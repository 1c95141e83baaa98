-- What metrics tell of that was written down nowhere: proofs, backups, how Kafka fares, and diversity.

CREATE TABLE proofs (
    claim     text PRIMARY KEY,
    proven_at timestamptz NOT NULL DEFAULT now(),
    position  text NOT NULL,
    findings  bigint NOT NULL CHECK (findings >= 0)
);
COMMENT ON TABLE proofs IS 'What contradicted each claim about the weights when the whole log was last verified; '
    '0 where it holds. position is where the logs were.';

CREATE TABLE backups (
    backup_id  text PRIMARY KEY CHECK (backup_id <> ''),
    created_at timestamptz NOT NULL,
    seconds    double precision NOT NULL CHECK (seconds >= 0),
    kind       text NOT NULL CHECK (kind IN ('base', 'dump')),
    bytes      bigint NOT NULL CHECK (bytes >= 0),
    changes    bigint NOT NULL CHECK (changes >= 0),
    position   text NOT NULL
);
CREATE INDEX backups_by_time ON backups (created_at);
COMMENT ON TABLE backups IS 'A backup that was made and read back, kept or not. It is recorded when it is there, so '
    'it is not in itself: a restored brain knows of those before.';

CREATE TABLE kafka_health (
    only_one         boolean PRIMARY KEY DEFAULT true CHECK (only_one),
    checked_at       timestamptz NOT NULL DEFAULT now(),
    state            text NOT NULL CHECK (state IN ('healthy', 'at risk', 'stopped')),
    answering        integer NOT NULL,
    silent           integer NOT NULL,
    voters           integer NOT NULL,
    current_voters   integer NOT NULL,
    under_replicated integer NOT NULL,
    at_minimum       integer NOT NULL,
    unwritable       integer NOT NULL
);
COMMENT ON TABLE kafka_health IS 'One row, once a relay has asked: how many brokers, controllers and partitions fare how.';

GRANT SELECT, INSERT, UPDATE (proven_at, position, findings) ON proofs TO somabrain_operator;
GRANT SELECT, INSERT ON backups TO somabrain_operator;
GRANT SELECT, INSERT, UPDATE ON kafka_health TO somabrain_operator;

ALTER TABLE adaptation_states ADD COLUMN repeated integer;
COMMENT ON COLUMN adaptation_states.repeated IS 'How many of recalled repeat an earlier one; null while there are few.';

-- The tenants that metrics name are asked for at every scrape.
CREATE INDEX tenants_by_age ON tenants (created_at, tenant_id);
