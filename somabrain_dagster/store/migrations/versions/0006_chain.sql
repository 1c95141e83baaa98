-- What the learning chain needs: trends, proposals and fits with the gates they met, experiments that run and
-- what they came to, canaries and their looks, promotions that can be undone, and how requests went.

CREATE TABLE performance_trends (
    tenant_id       text NOT NULL REFERENCES tenants,
    feedback_seq    bigint NOT NULL,
    analysed_at     timestamptz NOT NULL DEFAULT now(),
    bins            integer NOT NULL,
    tau             double precision NOT NULL,
    p               double precision NOT NULL CHECK (p BETWEEN 0 AND 1),
    uncorrected_p   double precision NOT NULL,
    autocorrelation double precision NOT NULL,
    slope           double precision NOT NULL,
    low             double precision NOT NULL,
    high            double precision NOT NULL,
    effect          double precision NOT NULL,
    q               double precision NOT NULL CHECK (q BETWEEN 0 AND 1),
    direction       smallint NOT NULL CHECK (direction BETWEEN -1 AND 1),
    PRIMARY KEY (tenant_id, feedback_seq)
);
COMMENT ON TABLE performance_trends IS 'The trend of a tenant''s utility up to a feedback event, per day; direction '
    'is 0 where it is not to be acted upon. q is over all tenants that were judged together.';

CREATE TABLE parameter_proposals (
    proposal_id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    created_at        timestamptz NOT NULL DEFAULT now(),
    reason            text NOT NULL,
    label             text NOT NULL CHECK (label IN ('full', 'bandit')),
    promotion_version bigint NOT NULL,
    registry_version  smallint NOT NULL,
    configuration     bytea NOT NULL REFERENCES configurations,
    from_scales       integer NOT NULL REFERENCES feature_scales,
    to_scales         integer NOT NULL REFERENCES feature_scales,
    before            bigint[] NOT NULL,
    weights           bigint[] NOT NULL CHECK (cardinality(weights) = cardinality(before)),
    recalls           bigint NOT NULL,
    first_recall_id   bigint NOT NULL,
    last_recall_id    bigint NOT NULL,
    accepted          boolean NOT NULL,
    gates             jsonb NOT NULL CHECK (jsonb_typeof(gates) = 'array'),
    fit               jsonb NOT NULL CHECK (jsonb_typeof(fit) = 'object')
);
COMMENT ON TABLE parameter_proposals IS 'Weights that a fit to many tenants'' recalls proposes, refused ones too, '
    'with every gate, its number and its limit. before and weights are nano-units at the scales to_scales.';

CREATE TABLE proposal_tenants (
    tenant_id   text NOT NULL REFERENCES tenants,
    proposal_id bigint NOT NULL REFERENCES parameter_proposals,
    first_seq   bigint NOT NULL,
    last_seq    bigint NOT NULL,
    recalls     bigint NOT NULL,
    PRIMARY KEY (tenant_id, proposal_id)
);
COMMENT ON TABLE proposal_tenants IS 'Which of a tenant''s feedback events, by its own numbers, a proposal learned '
    'from, and of how many recalls they speak.';

CREATE TABLE tenant_fits (
    tenant_id         text NOT NULL REFERENCES tenants,
    last_seq          bigint NOT NULL,
    created_at        timestamptz NOT NULL DEFAULT now(),
    first_seq         bigint NOT NULL,
    recalls           bigint NOT NULL,
    promotion_version bigint NOT NULL,
    registry_version  smallint NOT NULL,
    scale_version     integer NOT NULL REFERENCES feature_scales,
    prior             bigint[] NOT NULL,
    weights           bigint[] NOT NULL CHECK (cardinality(weights) = cardinality(prior)),
    accepted          boolean NOT NULL,
    gates             jsonb NOT NULL CHECK (jsonb_typeof(gates) = 'array'),
    applied_version   bigint,
    PRIMARY KEY (tenant_id, last_seq)
);
COMMENT ON TABLE tenant_fits IS 'A tenant''s own fit to its recalls up to a feedback event, refused ones too; '
    'applied_version is the change of weights that carried it out.';

ALTER TABLE experiments
    ADD COLUMN status        text NOT NULL DEFAULT 'draft' CHECK (status IN ('draft', 'running', 'stopped', 'completed')),
    ADD COLUMN actor         text,
    ADD COLUMN proposal_id   bigint REFERENCES parameter_proposals,
    ADD COLUMN promotion_version bigint,
    ADD COLUMN registry_version  smallint,
    ADD COLUMN shifts        bigint[],
    ADD COLUMN scale_version integer REFERENCES feature_scales,
    ADD COLUMN size          integer CHECK (size > 1),
    ADD COLUMN rule          jsonb CHECK (jsonb_typeof(rule) = 'object'),
    ADD COLUMN started_at    timestamptz,
    ADD COLUMN ended_at      timestamptz,
    ADD COLUMN end_reason    text,
    ADD CHECK (shifts IS NULL OR array_length(shifts, 1) = cardinality(arms)),
    ADD CHECK (status = 'draft' OR (shifts IS NOT NULL AND size IS NOT NULL AND rule IS NOT NULL)),
    ADD CHECK ((status = 'draft') = (started_at IS NULL)),
    ADD CHECK ((status IN ('stopped', 'completed')) = (ended_at IS NOT NULL));
COMMENT ON COLUMN experiments.shifts IS 'Of each arm, nano-units: by what a tenant''s weights are shifted as they are '
    'read. The first arm is the control.';
COMMENT ON COLUMN experiments.scale_version IS 'The scales that arms other than the control see, to which the '
    'tenant''s weights are converted before the shift; null for the tenant''s own.';
COMMENT ON COLUMN experiments.promotion_version IS 'What was promoted when the shifts were made: they speak of nothing else.';
-- What two trials would show together could not be told apart.
CREATE UNIQUE INDEX one_experiment_runs ON experiments ((true)) WHERE status = 'running';
CREATE INDEX recalls_by_arm ON recalls (arm) WHERE arm IS NOT NULL;

CREATE TABLE experiment_sessions (
    tenant_id     text NOT NULL REFERENCES tenants,
    experiment_id text NOT NULL REFERENCES experiments,
    session_id    text NOT NULL,
    arm           text NOT NULL,
    value         double precision NOT NULL CHECK (value BETWEEN -1 AND 1),
    events        bigint NOT NULL CHECK (events > 0),
    PRIMARY KEY (tenant_id, experiment_id, session_id)
);
CREATE INDEX experiment_sessions_by_experiment ON experiment_sessions (experiment_id, arm);
COMMENT ON TABLE experiment_sessions IS 'The sessions of an experiment that ended, each with its one number, the mean '
    'reward of its feedback: all that its analysis rests on.';

CREATE TABLE experiment_analyses (
    experiment_id text PRIMARY KEY REFERENCES experiments,
    analysed_at   timestamptz NOT NULL DEFAULT now(),
    test          bigint NOT NULL UNIQUE CHECK (test > 0),
    p             double precision NOT NULL CHECK (p BETWEEN 0 AND 1),
    online_level  double precision NOT NULL,
    online_bound  boolean NOT NULL,
    promoted_arm  text,
    analysis      jsonb NOT NULL CHECK (jsonb_typeof(analysis) = 'object')
);
COMMENT ON TABLE experiment_analyses IS 'What an experiment showed, once, on completion. test numbers the experiments in '
    'the order of their analysis, and online_level is what LORD++ allowed the one with this number.';

CREATE TABLE canaries (
    canary_id     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    experiment_id text NOT NULL REFERENCES experiments,
    arm           text NOT NULL,
    actor         text NOT NULL,
    status        text NOT NULL DEFAULT 'running' CHECK (status IN ('running', 'promoted', 'rolled_back', 'held')),
    shift         bigint[] NOT NULL,
    scale_version integer REFERENCES feature_scales,
    rule          jsonb NOT NULL CHECK (jsonb_typeof(rule) = 'object'),
    started_at    timestamptz NOT NULL DEFAULT now(),
    ended_at      timestamptz,
    end_reason    text,
    CHECK ((status = 'running') = (ended_at IS NULL))
);
COMMENT ON TABLE canaries IS 'Weights on trial with a few tenants, as a shift when their weights are read.';
CREATE UNIQUE INDEX one_canary_runs ON canaries ((true)) WHERE status = 'running';

CREATE TABLE canary_members (
    tenant_id text NOT NULL REFERENCES tenants,
    canary_id bigint NOT NULL REFERENCES canaries,
    canary    boolean NOT NULL,
    PRIMARY KEY (tenant_id, canary_id)
);
COMMENT ON TABLE canary_members IS 'The tenants of a canary: those that see the new weights, and those that they are compared with.';

CREATE TABLE canary_looks (
    canary_id bigint NOT NULL REFERENCES canaries,
    look      integer NOT NULL CHECK (look >= 0),
    looked_at timestamptz NOT NULL DEFAULT now(),
    action    text NOT NULL CHECK (action IN ('PROMOTE', 'HOLD', 'ROLLBACK')),
    decision  jsonb NOT NULL CHECK (jsonb_typeof(decision) = 'object'),
    PRIMARY KEY (canary_id, look)
);
COMMENT ON TABLE canary_looks IS 'What a look at a canary decided, and every gate with its number.';

CREATE TABLE canary_periods (
    tenant_id       text NOT NULL REFERENCES tenants,
    canary_id       bigint NOT NULL REFERENCES canaries,
    look            integer NOT NULL,
    before_sessions bigint NOT NULL,
    before_mean     double precision NOT NULL,
    before_variance double precision NOT NULL,
    since_sessions  bigint NOT NULL,
    since_mean      double precision NOT NULL,
    since_variance  double precision NOT NULL,
    PRIMARY KEY (tenant_id, canary_id, look),
    FOREIGN KEY (canary_id, look) REFERENCES canary_looks
);
COMMENT ON TABLE canary_periods IS 'The moments of a tenant''s sessions, before a canary and since, that a look rests on.';

ALTER TABLE promotions
    ADD COLUMN canary_id     bigint UNIQUE REFERENCES canaries,
    ADD COLUMN scale_version integer REFERENCES feature_scales,
    ADD COLUMN reverts       bigint UNIQUE REFERENCES promotions;
COMMENT ON COLUMN promotions.scale_version IS 'The scales that came into force with it, in which before and weights are '
    'given; null where scales stayed as they were.';
COMMENT ON COLUMN promotions.reverts IS 'The promotion that this one undoes: each tenant has the weights again that it '
    'had before that one.';

CREATE TABLE request_stats (
    tenant_id text NOT NULL REFERENCES tenants,
    minute    timestamptz NOT NULL,
    requests  bigint NOT NULL CHECK (requests >= 0),
    errors    bigint NOT NULL CHECK (errors BETWEEN 0 AND requests),
    latencies bigint[] NOT NULL,
    PRIMARY KEY (tenant_id, minute)
);
COMMENT ON TABLE request_stats IS 'How a tenant''s requests to the service went, by the minute: how many, how many failed '
    'by no fault of the client, and a histogram of how long they took.';

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY[
        'performance_trends', 'proposal_tenants', 'tenant_fits', 'experiment_sessions', 'canary_members',
        'canary_periods', 'request_stats'
    ] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', name);
        EXECUTE format($policy$
            CREATE POLICY own_tenants ON %I TO somabrain_tenant
            USING (tenant_id = ANY ((SELECT string_to_array(current_setting('app.tenants', true), ','))::text[]))
        $policy$, name);
        EXECUTE format('CREATE POLICY all_tenants ON %I TO somabrain_operator USING (true)', name);
        EXECUTE format('GRANT SELECT ON %I TO somabrain_tenant, somabrain_operator', name);
        EXECUTE format('GRANT INSERT ON %I TO somabrain_operator', name);
    END LOOP;
END
$$;
GRANT SELECT ON canaries TO somabrain_tenant;
GRANT SELECT, INSERT ON parameter_proposals, experiment_analyses, canaries, canary_looks TO somabrain_operator;
GRANT UPDATE (analysed_at, q, direction) ON performance_trends TO somabrain_operator;
GRANT UPDATE (applied_version) ON tenant_fits TO somabrain_operator;
GRANT UPDATE (status, started_at, ended_at, end_reason, size, rule) ON experiments TO somabrain_operator;
GRANT UPDATE (status, ended_at, end_reason) ON canaries TO somabrain_operator;
GRANT UPDATE (requests, errors, latencies), DELETE ON request_stats TO somabrain_operator;

-- Word of every trial that begins or ends, when it is committed.
CREATE FUNCTION notify_trials() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('somabrain_trials', '');
    RETURN NULL;
END
$$;
CREATE TRIGGER notify_trials AFTER INSERT OR UPDATE ON experiments FOR EACH STATEMENT EXECUTE FUNCTION notify_trials();
CREATE TRIGGER notify_trials AFTER INSERT OR UPDATE ON canaries FOR EACH STATEMENT EXECUTE FUNCTION notify_trials();
