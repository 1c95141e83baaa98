"""A server of one's own: what `deploy/postgres/prepare.sql` gives is enough, and what is missing is named."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

import psycopg
import pytest

from somabrain_dagster.embedded import PostgresServer, ValkeyServer, start_postgres, stop_postgres
from somabrain_dagster.embedded.postgres import binaries_path
from somabrain_dagster.store.database import Database, DatabaseNotPrepared, ensure_sibling_database
from somabrain_dagster.store.schema import SchemaTooNew, migrate, newest_revision
from tests.brain import landed, new_tenants, said

PREPARE = Path(__file__).parent.parent / "deploy" / "postgres" / "prepare.sql"
PASSWORD = "a b'c%40/"
"""Whatever a password has, it works: quoted in SQL, percent-encoded in the URL."""


@pytest.fixture(scope="module")
def server(reachable_path: Path) -> Iterator[PostgresServer]:
    """A server on which nothing of ours was ever made; the embedded owner has made way for the stranger's."""
    home = reachable_path / "stranger"
    started = start_postgres(home)
    with psycopg.connect(started.admin_url(), autocommit=True) as admin:
        admin.execute("ALTER ROLE somabrain RENAME TO embedded")
    yield started
    stop_postgres(home)


def prepare(server: PostgresServer, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [binaries_path() / "psql", "-q", "-v", "ON_ERROR_STOP=1", "-f", PREPARE, server.admin_url()],
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def owner_url(server: PostgresServer) -> str:
    """The URL of the role that the script makes."""
    done = prepare(server, DATABASE_PASSWORD=PASSWORD, BACKUP_PASSWORD=PASSWORD)
    assert (done.returncode, done.stderr) == (0, "")
    return f"postgresql://somabrain:{quote(PASSWORD, safe='')}@{server.host}:{server.port}/somabrain"


def database_of(url: str, name: str) -> str:
    """The URL of another database of the same server."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


def test_the_passwords_are_asked_for(server: PostgresServer) -> None:
    for given, missing in (({}, "DATABASE_PASSWORD"), ({"DATABASE_PASSWORD": "one"}, "BACKUP_PASSWORD")):
        refused = prepare(server, **given)
        assert refused.returncode == 3
        assert f"{missing} is not set" in refused.stderr


def test_the_owner_is_no_superuser_and_all_works(owner_url: str) -> None:
    migrate(owner_url)
    with Database(owner_url) as database:
        with database.as_owner() as connection:
            granted = connection.execute(
                "SELECT rolsuper, rolbypassrls, rolcreaterole, rolcreatedb "
                "FROM pg_roles WHERE rolname = current_user"
            ).fetchone()
        assert granted == (False, False, False, False)
        (tenant,) = new_tenants(database, 1)
        landed(database, [said(tenant, 0.5)])


def test_who_copies_the_cluster_reads_no_table(owner_url: str) -> None:
    migrate(owner_url)
    url = owner_url.replace("//somabrain:", "//somabrain_backup:")
    with psycopg.connect(url, autocommit=True) as connection:
        assert connection.execute(
            "SELECT rolreplication, rolsuper FROM pg_roles WHERE rolname = current_user"
        ).fetchone() == (True, False)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("SELECT FROM tenants")


def test_dagsters_programs_find_their_instance(owner_url: str, valkey: ValkeyServer, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "SOMABRAIN_HOME": str(tmp_path),
        "SOMABRAIN_DATABASE_URL": owner_url,
        "SOMABRAIN_REDIS_URL": valkey.url,
    }
    migrated = somabrain(environment, "exec", "dagster", "instance", "migrate")
    assert migrated.returncode == 0, migrated.stderr
    with psycopg.connect(database_of(owner_url, "somabrain_dagster")) as connection:
        assert connection.execute("SELECT to_regclass('event_logs') IS NOT NULL").fetchone() == (True,)
    missing = somabrain(environment, "exec", "dagster-demon", "run")
    assert missing.returncode == 1
    assert "no program 'dagster-demon'" in missing.stderr


def test_migrate_says_where_the_schema_is_and_starts_nothing(owner_url: str, tmp_path: Path) -> None:
    environment = {**os.environ, "SOMABRAIN_HOME": str(tmp_path / "home")}
    migrate(owner_url)
    said_so = somabrain({**environment, "SOMABRAIN_DATABASE_URL": owner_url}, "migrate")
    assert said_so.stdout == f"the schema is at {newest_revision()}\n"
    refused = somabrain({**environment, "SOMABRAIN_DATABASE_URL": ""}, "migrate")
    assert refused.returncode == 1
    assert "SOMABRAIN_DATABASE_URL is not set" in refused.stderr
    assert not (tmp_path / "home").exists()


def somabrain(environment: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).parent / "somabrain", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ((), 'permission denied to create extension "vector"'),
        (
            ("REVOKE ADMIN OPTION FOR somabrain_tenant FROM somabrain CASCADE",),
            "permission denied to grant role",
        ),
    ],
)
def test_what_only_a_superuser_can_make_is_named(
    server: PostgresServer, owner_url: str, given: tuple[str, ...], missing: str
) -> None:
    url = database_of(owner_url, "unprepared")
    with psycopg.connect(server.admin_url(), autocommit=True) as admin:
        admin.execute("CREATE DATABASE unprepared OWNER somabrain")
        try:
            for statement in given:
                admin.execute(statement.encode())
            with pytest.raises(DatabaseNotPrepared, match=r"prepare\.sql") as refused:
                migrate(url)
            assert missing in str(refused.value)
        finally:
            admin.execute("GRANT somabrain_tenant TO somabrain WITH ADMIN OPTION")
            admin.execute("DROP DATABASE unprepared WITH (FORCE)")


def test_a_database_that_the_owner_may_not_make_is_named(owner_url: str) -> None:
    with pytest.raises(DatabaseNotPrepared, match="no database 'somabrain_other'"):
        ensure_sibling_database(owner_url, "_other")


def test_a_schema_of_a_newer_version_is_left_alone(empty_url: str) -> None:
    migrate(empty_url)
    with psycopg.connect(empty_url) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(SchemaTooNew, match="at revision 9999"):
        migrate(empty_url)
