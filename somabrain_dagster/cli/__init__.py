"""`somabrain`: what a person runs."""

from somabrain_dagster.cli.main import main

__all__ = ["main"]
