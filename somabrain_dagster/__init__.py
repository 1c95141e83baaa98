"""SomaBrain's learning-operations platform: from feedback to promoted weights and corpora, in Dagster."""

__version__ = "0.1.0"
