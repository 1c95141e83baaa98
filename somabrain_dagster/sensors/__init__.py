"""Sensors: decisions of when."""
