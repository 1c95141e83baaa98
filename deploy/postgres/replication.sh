#!/bin/sh
# When the container's cluster is made: backups are copied from other containers.
echo 'host replication somabrain_backup samenet scram-sha-256' >> "$PGDATA/pg_hba.conf"
