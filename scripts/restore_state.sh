#!/bin/sh
# Restore a backup: `somabrain restore [BACKUP] --into DIR | --replace | --database URL`. See docs/BACKUP.md.
set -eu
exec "$(dirname "$0")/../.venv/bin/somabrain" restore "$@"
