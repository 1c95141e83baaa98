"""One service for the tests of this directory; each test has its own tenants, and undoes what it promoted."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from somabrain_dagster.embedded import PostgresServer, ValkeyServer
from somabrain_dagster.store.database import Database
from tests.conftest import new_database
from tests.serving.running import Running, running

QUICK = {"SOMABRAIN_SERVICE_DRAIN_SECONDS": "0.1"}


@contextmanager
def on_its_own(postgres: PostgresServer, template: str, redis_url: str, log: Path) -> Iterator[Running]:
    """A service on a database that it shares with no other."""
    with (
        new_database(postgres, template) as name,
        Database(postgres.url(name)) as database,
        running(database, redis_url, log, variables=QUICK) as service,
    ):
        yield service


@pytest.fixture(scope="session")
def service(
    postgres: PostgresServer,
    valkey: ValkeyServer,
    migrated_template: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Running]:
    log = tmp_path_factory.mktemp("service") / "log"
    with on_its_own(postgres, migrated_template, f"{valkey.url}/5", log) as service:
        yield service


@pytest.fixture
def tenant(service: Running) -> tuple[str, str]:
    """A tenant of the test's own, and its key."""
    name = f"tenant-{uuid4().hex[:10]}"
    return name, service.add_tenants([name])[name]
