"""Asset checks: sentences about the data that hold or do not."""
