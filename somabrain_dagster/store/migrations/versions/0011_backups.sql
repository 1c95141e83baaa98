-- Which brain this is, when it was last restored, and which of its backups were proven.

CREATE TABLE brain (
    only_one boolean PRIMARY KEY DEFAULT true CHECK (only_one),
    brain_id uuid NOT NULL DEFAULT gen_random_uuid(),
    epoch    bigint NOT NULL DEFAULT 1 CHECK (epoch > 0)
);
INSERT INTO brain DEFAULT VALUES;
COMMENT ON TABLE brain IS 'One row. A backup is of the brain that it names. The epoch is 1, or the second of the '
    'last restore: a new cluster starts its transaction ids anew.';

CREATE TABLE restore_drills (
    drill_id   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    created_at timestamptz NOT NULL DEFAULT now(),
    backup_id  text NOT NULL CHECK (backup_id <> ''),
    backup_at  timestamptz NOT NULL,
    position   text NOT NULL,
    seconds    double precision NOT NULL CHECK (seconds >= 0),
    findings   text[] NOT NULL
);
COMMENT ON TABLE restore_drills IS 'A backup that was restored into a scratch instance: proven, where nothing was '
    'found against it.';

GRANT SELECT ON brain, restore_drills TO somabrain_operator;
GRANT UPDATE (epoch) ON brain TO somabrain_operator;
GRANT INSERT ON restore_drills TO somabrain_operator;
