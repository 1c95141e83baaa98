"""Programs for people, each run by the Makefile."""
