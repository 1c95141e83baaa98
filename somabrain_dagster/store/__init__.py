"""Postgres and Redis: the schema, and the only place with SQL."""
