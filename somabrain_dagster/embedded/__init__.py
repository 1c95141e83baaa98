"""Postgres and Valkey from wheels, started for a person who has none."""
