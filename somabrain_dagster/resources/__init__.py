"""Dagster resources: the store, the cache, the artifact store."""
