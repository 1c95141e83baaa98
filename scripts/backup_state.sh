#!/bin/sh
# Back up Postgres and Redis: `somabrain backup run`, by the settings of the environment. See docs/BACKUP.md.
set -eu
exec "$(dirname "$0")/../.venv/bin/somabrain" backup run "$@"
