"""How Alembic reaches the database: by the connection that `somabrain_dagster.store.schema` hands it."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], transaction_per_migration=True)
with context.begin_transaction():
    context.run_migrations()
