"""The dashboard of what is done beside the service."""

from scripts.dashboards.views import BAD_GOOD, GOOD_BAD, Board, Query, View, age, each, total

OPERATIONS = Board(
    uid="somabrain-operations",
    title="SomaBrain: operations",
    about="Proofs, backups, retention, Kafka and Dagster: what is done, and how long ago.",
    rows={
        "Alerts and proofs": [
            View(
                "Alerts that fire",
                "How many; the runbook has a section for each.",
                [Query('count(ALERTS{alertstate="firing", product="somabrain"}) or vector(0)', "firing")],
                kind="numbers",
                span=4,
                steps=GOOD_BAD,
            ),
            View(
                "What contradicts a claim",
                "When the whole log was last verified. 0: it holds.",
                [Query(each("somabrain_proof_findings", "claim", ""), "{{claim}}")],
                kind="bars",
                span=12,
                steps=GOOD_BAD,
            ),
            View(
                "Since the last verification, and the last seal",
                "Of the log of weights; of the heads of all chains.",
                [
                    Query(age("somabrain_proof_last_timestamp_seconds"), "verified"),
                    Query(age("somabrain_audit_seal_last_timestamp_seconds"), "sealed"),
                ],
                unit="s",
                kind="numbers",
            ),
            View(
                "How far the learning chain is behind",
                "Feedback that Dagster has not followed yet.",
                [Query(each("somabrain_log_lag_events", "consumer", ""), "{{consumer}}")],
                span=8,
            ),
            View(
                "For how long",
                "The oldest change beyond the marks of each consumer.",
                [Query(each("somabrain_log_lag_seconds", "consumer", ""), "{{consumer}}")],
                unit="s",
            ),
            View(
                "Of how many tenants",
                "Whose log goes on beyond their mark.",
                [Query(each("somabrain_log_lag_tenants", "consumer", ""), "{{consumer}}")],
            ),
        ],
        "Backups and restores": [
            View(
                "Since the last backup",
                "It is made every day; an alarm comes after 30 hours.",
                [Query(age("somabrain_backup_last_timestamp_seconds"), "ago")],
                unit="s",
                kind="numbers",
                span=4,
                steps={None: "green", 86400: "orange", 108000: "red"},
            ),
            View(
                "What a restore would lose",
                "Changes of weights that the last backup does not have.",
                [Query("max(somabrain_weight_changes) - max(somabrain_backup_last_changes)", "changes")],
                kind="numbers",
                span=4,
            ),
            View(
                "Size of the last backup",
                "And how many were made.",
                [
                    Query("max(somabrain_backup_last_size_bytes)", "size"),
                ],
                unit="bytes",
                kind="numbers",
                span=4,
            ),
            View(
                "Backups, and how long the last one took",
                "How many were made, not how many are kept; and seconds.",
                [
                    Query("max(somabrain_backups)", "backups"),
                    Query("max(somabrain_backup_last_duration_seconds)", "seconds"),
                ],
                kind="numbers",
                span=4,
            ),
            View(
                "Since a restore was proven",
                "By a drill that found nothing; since that backup; and since any drill.",
                [
                    Query(age("somabrain_restore_proven_timestamp_seconds"), "proven"),
                    Query(age("somabrain_restore_proven_backup_timestamp_seconds"), "that backup"),
                    Query(age("somabrain_restore_drill_last_timestamp_seconds"), "drill"),
                ],
                unit="s",
                kind="numbers",
                span=4,
            ),
            View(
                "Drills",
                "By what they came to.",
                [Query(total("somabrain_restore_drills_total", "outcome"), "{{outcome}}")],
                kind="bars",
                span=4,
            ),
        ],
        "Retention": [
            View(
                "Rows that were dropped",
                "After they were sealed, as they have added up.",
                [Query(total("somabrain_retention_rows_dropped_total", "relation"), "{{relation}}")],
            ),
            View(
                "Weeks to come, and weeks past their time",
                "With less than two weeks to come there is soon no place for new rows.",
                [
                    Query(
                        "min by (relation) (somabrain_retention_partitions_ahead)", "to come: {{relation}}"
                    ),
                    Query(each("somabrain_retention_partitions_due", "relation", ""), "due: {{relation}}"),
                ],
                kind="bars",
            ),
            View(
                "Since rows were last dropped, and legal holds",
                "A hold keeps a tenant's rows. 0 seconds where none was ever dropped.",
                [
                    Query(
                        f"({age('somabrain_retention_last_drop_timestamp_seconds')}) or vector(0)", "seconds"
                    ),
                    Query("max(somabrain_legal_holds)", "holds"),
                ],
                kind="numbers",
            ),
        ],
        "Kafka": [
            View(
                "The relay, and how Kafka fares",
                "Whether a relay runs, and the state of the cluster: 1 for the one that is.",
                [
                    Query("max(somabrain_relay_running)", "relay"),
                    Query(each("somabrain_kafka_state", "state", ""), "{{state}}"),
                ],
                kind="numbers",
            ),
            View(
                "Not published yet",
                "Rows of each log that Kafka has not acknowledged.",
                [Query(each("somabrain_relay_unpublished", "log", ""), "{{log}}")],
            ),
            View(
                "For how long",
                "The oldest of them.",
                [Query(each("somabrain_relay_oldest_unpublished_seconds", "log", ""), "{{log}}")],
                unit="s",
            ),
            View(
                "Brokers and controllers",
                "Brokers that answer or are silent; controllers that vote, and those of them that follow.",
                [
                    Query(each("somabrain_kafka_brokers", "state", ""), "brokers {{state}}"),
                    Query("max(somabrain_kafka_voters)", "voters"),
                    Query("max(somabrain_kafka_voters_current)", "voters that follow"),
                ],
                kind="bars",
            ),
            View(
                "Partitions that are not as they should be",
                "Of the relay's topics.",
                [Query(each("somabrain_kafka_partitions", "state", ""), "{{state}}")],
                kind="bars",
                steps=GOOD_BAD,
            ),
            View(
                "Since Kafka was last asked",
                "The relay asks every 15 seconds.",
                [Query(age("somabrain_kafka_checked_timestamp_seconds"), "ago")],
                unit="s",
                kind="numbers",
            ),
        ],
        "Dagster": [
            View(
                "Since a sign of life",
                "Of each part of the daemon.",
                [Query(age("somabrain_dagster_daemon_heartbeat_timestamp_seconds", "daemon"), "{{daemon}}")],
                unit="s",
                kind="bars",
                steps={None: "green", 120: "orange", 300: "red"},
            ),
            View(
                "Since sensors looked and schedules were due",
                "Sensors look every five minutes at the latest; schedules by the hour, day or week.",
                [
                    Query(
                        age("somabrain_dagster_last_tick_timestamp_seconds", "kind, instigator"),
                        "{{kind}} {{instigator}}",
                    )
                ],
                unit="s",
                kind="bars",
            ),
            View(
                "What failed last",
                "1 where the last tick, or the last run of a job, failed.",
                [
                    Query(
                        each("somabrain_dagster_last_tick_failed", "kind, instigator", ""), "{{instigator}}"
                    ),
                    Query(each("somabrain_dagster_last_run_failed", "job", ""), "{{job}}"),
                ],
                kind="bars",
                steps=GOOD_BAD,
            ),
            View(
                "Runs that wait or work",
                "By job.",
                [Query(each("somabrain_dagster_runs_unfinished", "job", ""), "{{job}}")],
            ),
            View(
                "How long the last run took",
                "By job.",
                [Query(each("somabrain_dagster_last_run_duration_seconds", "job", ""), "{{job}}")],
                unit="s",
                kind="bars",
            ),
            View(
                "Since a job succeeded",
                "Where it ever did.",
                [Query(age("somabrain_dagster_last_success_timestamp_seconds", "job"), "{{job}}")],
                unit="s",
                kind="bars",
            ),
            View(
                "Runs that failed",
                "By job, as they have added up in the audit trail.",
                [Query(total("somabrain_dagster_run_failures_total", "job"), "{{job}}")],
                span=16,
            ),
            View(
                "Dagster's tables",
                "1 where the service can read them: else nothing above is known.",
                [Query("min(somabrain_dagster_storage_up)", "readable")],
                kind="numbers",
                steps=BAD_GOOD,
            ),
        ],
    },
)
