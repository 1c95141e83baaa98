"""The mathematics: pure functions on numpy arrays and frozen dataclasses; no I/O, no clock, no Dagster."""
