"""One service for the tests of this directory; each test has its own tenants, and undoes what it promoted."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol
from uuid import uuid4

import pytest

from somabrain_dagster.embedded import PostgresServer, ValkeyServer
from somabrain_dagster.store.database import Database
from tests.conftest import new_database
from tests.serving.running import Running, running

QUICK = {"SOMABRAIN_SERVICE_DRAIN_SECONDS": "0.1"}


class OnItsOwn(Protocol):
    """Starts a service on a database of Postgres that it shares with no other."""

    def __call__(
        self, valkey_database: int, variables: Mapping[str, str] = QUICK
    ) -> AbstractContextManager[Running]: ...


@pytest.fixture(scope="session")
def on_its_own(
    postgres: PostgresServer,
    valkey: ValkeyServer,
    migrated_template: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> OnItsOwn:
    @contextmanager
    def started(valkey_database: int, variables: Mapping[str, str] = QUICK) -> Iterator[Running]:
        log = tmp_path_factory.mktemp("service") / "log"
        with (
            new_database(postgres, migrated_template) as name,
            Database(postgres.url(name)) as database,
            running(database, f"{valkey.url}/{valkey_database}", log, variables=variables) as service,
        ):
            yield service

    return started


@pytest.fixture(scope="session")
def service(on_its_own: OnItsOwn) -> Iterator[Running]:
    with on_its_own(5) as service:
        yield service


@pytest.fixture
def tenant(service: Running) -> tuple[str, str]:
    """A tenant of the test's own, and its key."""
    name = f"tenant-{uuid4().hex[:10]}"
    return name, service.add_tenants([name])[name]
