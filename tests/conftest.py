"""One pair of real servers for the whole session; a test makes its own database or key prefix in them."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from somabrain_dagster.embedded import (
    EmbeddedServerError,
    PostgresServer,
    ValkeyServer,
    ensure_database,
    start_postgres,
    start_valkey,
    stop_postgres,
    stop_valkey,
)
from somabrain_dagster.embedded.prometheus import PrometheusTools, prometheus_tools
from somabrain_dagster.memory.embedding import MiniLM
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.schema import migrate
from tests.reenacted import Reenactment, reenactment_in
from tests.remembering import EmbeddedOnce

if TYPE_CHECKING:
    import dagster as dg


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


@pytest.fixture(scope="session")
def tools() -> PrometheusTools:
    """Prometheus' programs, got once for a working tree where the machine has none."""
    try:
        return prometheus_tools(Path(__file__).parent.parent / ".somabrain")
    except EmbeddedServerError as error:
        pytest.skip(str(error))


@contextmanager
def new_database(postgres: PostgresServer, template: str) -> Iterator[str]:
    """A database of its own, as the template is; its name is unique, and it is dropped at the end."""
    name = f"test_{uuid4().hex}"
    with psycopg.connect(postgres.admin_url(), autocommit=True) as admin:
        admin.execute(
            sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE {}").format(
                sql.Identifier(name), sql.Identifier(postgres.user), sql.Identifier(template)
            )
        )
        try:
            yield name
        finally:
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture(scope="session")
def empty_template(postgres: PostgresServer) -> str:
    """The name of a database with its extensions and nothing else; connect to copies of it only."""
    ensure_database(postgres, "template_empty")
    return "template_empty"


@pytest.fixture(scope="session")
def migrated_template(postgres: PostgresServer) -> str:
    """The name of a database at the newest revision, without rows; connect to copies of it only."""
    ensure_database(postgres, "template_migrated")
    migrate(postgres.url("template_migrated"))
    return "template_migrated"


@pytest.fixture
def empty_url(postgres: PostgresServer, empty_template: str) -> Iterator[str]:
    """The owner's URL of a database before any migration."""
    with new_database(postgres, empty_template) as name:
        yield postgres.url(name)


@pytest.fixture
def owner_url(postgres: PostgresServer, migrated_template: str) -> Iterator[str]:
    """The owner's URL of the test's own database, at the newest revision."""
    with new_database(postgres, migrated_template) as name:
        yield postgres.url(name)


@pytest.fixture
def database(owner_url: str) -> Iterator[Database]:
    """The test's own database, at the newest revision and without rows."""
    with Database(owner_url) as opened:
        yield opened


@pytest.fixture(scope="session")
def shared_database(postgres: PostgresServer, migrated_template: str) -> Iterator[Database]:
    """One database for tests that touch only tenants of their own: a copy for each takes half a second."""
    with new_database(postgres, migrated_template) as name, Database(postgres.url(name)) as opened:
        yield opened


@pytest.fixture(scope="session")
def minilm() -> EmbeddedOnce:
    """The real model. Each text is embedded once a session, however many tests remember it."""
    return EmbeddedOnce(MiniLM())


@pytest.fixture(scope="session")
def reenactment(
    postgres: PostgresServer, migrated_template: str, minilm: EmbeddedOnce
) -> Iterator[Reenactment]:
    """Six people's conversations, re-enacted once a session: it takes most of a minute."""
    with new_database(postgres, migrated_template) as name:
        with Database(postgres.url(name)) as database:
            made = reenactment_in(database, name, minilm)
        yield made


@pytest.fixture
def taught(postgres: PostgresServer, reenactment: Reenactment) -> Iterator[Database]:
    """A copy of the brain in which six people were re-enacted."""
    with new_database(postgres, reenactment.template) as name, Database(postgres.url(name)) as database:
        yield database


@pytest.fixture(scope="module")
def instance(
    postgres: PostgresServer,
    valkey: ValkeyServer,
    empty_template: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> "Iterator[dg.DagsterInstance]":
    """Dagster's instance, with a database of its own."""
    from tests.chain import new_instance  # Dagster takes a second to import: only what needs it waits

    with new_instance(postgres, valkey, empty_template, tmp_path_factory.mktemp("home")) as opened:
        yield opened
