"""Software-defined assets, one module a group: they read the store, call the mathematics, write the store."""
