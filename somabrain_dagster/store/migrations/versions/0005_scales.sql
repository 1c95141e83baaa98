-- Scales that are measured, and a log that says in which scales weights are meant.

-- A feature that stood still in every recall has the scale 1: its weight then speaks of the feature as it is.
INSERT INTO feature_scales (version, registry_version, scales, half_life_seconds, measured_from) VALUES
    (2, 1, '{0.085848, 0.049093, 0.34127, 0.250948, 1, 0.443769}', 3600,
     '1,520 recalls by 76 people of the BYU Chit-Chat data, 72 candidates each; mention stood still');

-- For new tenants. Those that there are keep the scales in which they learned until somebody changes them.
ALTER TABLE tenants ALTER COLUMN scale_version SET DEFAULT 2;

ALTER TABLE weight_changes ADD COLUMN scale_version bigint;
COMMENT ON COLUMN weight_changes.scale_version IS 'The scales in which the weights are meant from this change on; '
    'null where they stay, and 1 before the first that is named.';
CREATE INDEX weight_changes_by_scales ON weight_changes (tenant_id, version) WHERE scale_version IS NOT NULL;

-- As before for rows without scales. Frames are read off one by one: the third one behind restored_version
-- is a version of the scales.
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
        WHEN change.scale_version IS NOT NULL
            THEN framed(int8send(change.recall_id)) || framed(int8send(change.promotion))
                || framed(int8send(change.scale_version))
        WHEN change.promotion IS NOT NULL
            THEN framed(int8send(change.recall_id)) || framed(int8send(change.promotion))
        WHEN change.recall_id IS NOT NULL THEN framed(int8send(change.recall_id))
        ELSE ''::bytea
    END
);
