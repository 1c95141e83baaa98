"""One pair of real servers for the whole session; a test makes its own database or key prefix in them."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from somabrain_dagster.embedded import (
    PostgresServer,
    ValkeyServer,
    start_postgres,
    start_valkey,
    stop_postgres,
    stop_valkey,
)


@pytest.fixture(scope="session")
def reachable_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A temporary directory that root's unprivileged servers can reach; pytest's own is closed to them."""
    if os.geteuid() != 0:
        yield tmp_path_factory.mktemp("servers")
        return
    path = Path(tempfile.mkdtemp(prefix="somabrain-tests-", dir="/var/tmp"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def server_home(reachable_path: Path) -> Path:
    return reachable_path / "session"


@pytest.fixture(scope="session")
def postgres(server_home: Path) -> Iterator[PostgresServer]:
    yield start_postgres(server_home)
    stop_postgres(server_home)


@pytest.fixture(scope="session")
def valkey(server_home: Path) -> Iterator[ValkeyServer]:
    yield start_valkey(server_home)
    stop_valkey(server_home)
