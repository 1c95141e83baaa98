"""The HTTP service; it never imports Dagster."""
