"""Runs on other machines: Dagster's Celery engine, as the project uses it."""
