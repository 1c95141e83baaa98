"""What the last verification of the whole log came to."""

from somabrain_dagster.store.database import Connection
from somabrain_dagster.store.positions import position
from somabrain_dagster.store.verification import Verification


def record_proof(connection: Connection, verification: Verification) -> None:
    """Write down how much contradicts each claim, in place of what did before.

    Args:
        connection: an operator's transaction.
        verification: of the whole log.
    """
    here = position(verification.log.heads)
    with connection.cursor() as cursor:
        cursor.executemany(
            """
            INSERT INTO proofs (claim, position, findings) VALUES (%s, %s, %s)
            ON CONFLICT (claim) DO UPDATE
            SET (proven_at, position, findings) = (now(), EXCLUDED.position, EXCLUDED.findings)
            """,
            [(claim, here, len(found)) for claim, found in verification.by_claim().items()],
        )
