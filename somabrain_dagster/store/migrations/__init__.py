"""Forward-only migrations of the schema: each is a file of SQL."""

from pathlib import Path

from alembic import op


def run_sql_beside(revision_file: str) -> None:
    """Run the .sql file of the same name, as it is.

    It goes to the driver directly, since SQLAlchemy would read its percent signs and colons as parameters.
    """
    driver_connection = op.get_bind().connection.driver_connection
    assert driver_connection is not None
    driver_connection.execute(Path(revision_file).with_suffix(".sql").read_text())
