"""SomaBrain's learning-operations platform: from feedback to promoted weights and corpora, as Dagster assets."""

__version__ = "0.1.0"
