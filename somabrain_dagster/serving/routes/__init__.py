"""The operations, one module a concern."""
