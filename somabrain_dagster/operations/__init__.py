"""What is done to the data as a whole: imports, backups, restores, retention, the audit relay."""
