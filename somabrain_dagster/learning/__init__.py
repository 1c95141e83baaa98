"""The mathematics: pure functions on numpy arrays and small frozen dataclasses; no I/O, no clock, no Dagster."""
