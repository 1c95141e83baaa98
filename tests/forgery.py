"""What somebody could do who owns the tables: the tests' adversary."""

from somabrain_dagster.store.database import Connection, Database


def nudge_live_alpha(database: Database, tenant_id: str, nanos: int = 1) -> None:
    """Add so many nano-units to a tenant's live α."""
    with database.as_owner() as connection:
        connection.execute("ALTER TABLE adaptation_states NO FORCE ROW LEVEL SECURITY")
        connection.execute(
            "UPDATE adaptation_states SET weights[1] = weights[1] + %s WHERE tenant_id = %s",
            (nanos, tenant_id),
        )
        connection.execute("ALTER TABLE adaptation_states FORCE ROW LEVEL SECURITY")


def forge_change(database: Database, tenant_id: str, version: int, nanos: int) -> None:
    """Alter the shift of α of one change, then all that hangs on it: weights, hashes and the live state."""
    with database.as_owner() as connection:
        for table in ("weight_changes", "adaptation_states"):
            connection.execute(f"ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY")
        connection.execute(
            """
            CREATE FUNCTION pg_temp.forge(tenant text, forged bigint, nanos bigint) RETURNS void
            LANGUAGE plpgsql AS $$
            DECLARE
                row weight_changes;
                previous weight_changes;
            BEGIN
                FOR row IN SELECT * FROM weight_changes WHERE tenant_id = tenant ORDER BY version LOOP
                    IF row.version = forged THEN
                        row.shift[1] := row.shift[1] + nanos;
                    END IF;
                    IF row.version >= forged THEN
                        row.after[1] := previous.after[1] + row.shift[1];
                        row.hash := weight_change_hash(previous.hash, row);
                        UPDATE weight_changes SET shift = row.shift, after = row.after, hash = row.hash
                        WHERE tenant_id = row.tenant_id AND version = row.version;
                    END IF;
                    previous := row;
                END LOOP;
                UPDATE adaptation_states SET weights = previous.after, hash = previous.hash
                WHERE tenant_id = previous.tenant_id;
            END
            $$
            """
        )
        connection.execute("SELECT pg_temp.forge(%s, %s, %s)", (tenant_id, version, nanos))
        for table in ("weight_changes", "adaptation_states"):
            connection.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")


def as_forger(connection: Connection, *tables: str) -> None:
    """Let the owner see and change what row security keeps from everybody."""
    for table in tables:
        connection.execute(f"ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY".encode())


def shuffle_labels(database: Database, seed: float = 0.5) -> None:
    """The same recalls, but each feedback names a candidate that is drawn blindly."""
    with database.as_owner() as connection:
        as_forger(connection, "feedback_events", "recalls")
        connection.execute("SELECT setseed(%s)", (seed,))
        connection.execute(
            """
            UPDATE feedback_events e SET helpful = jsonb_build_array(jsonb_build_object(
                'credit', 1,
                'memory', r.candidate_ids[1 + floor(random() * cardinality(r.candidate_ids))::int]
            ))
            FROM recalls r WHERE r.tenant_id = e.tenant_id AND r.recall_id = e.recall_id
            """
        )
