"""What somebody who owns the tables changes in the history is found, and the row is named."""

import subprocess
from pathlib import Path

import pytest

from somabrain_dagster.embedded import ValkeyServer
from somabrain_dagster.operations.chitchat import ChitChat, read_chitchat
from somabrain_dagster.operations.sealing import compare_seals, published_seals, seal_history
from somabrain_dagster.store.adaptation import create_tenants
from somabrain_dagster.store.audit import SYSTEM, record
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.landing import land
from somabrain_dagster.store.seals import Seal, read_seals, seal
from somabrain_dagster.store.tampering import Tampering, find_tampering
from tests.brain import CONFIGURATION
from tests.forgery import as_forger, forge_change
from tests.kafka import somabrain, variables


@pytest.fixture(scope="module")
def data() -> ChitChat:
    return read_chitchat(1)


@pytest.fixture
def history(database: Database, data: ChitChat) -> tuple[Database, str]:
    """A database with twenty real ratings of one person and six audit events, and the person."""
    (person,) = data.tenants
    with database.as_operator() as connection:
        create_tenants(connection, [person], CONFIGURATION)
        for number in range(6):
            record(connection, person, "ada", "flag", {"number": number})
    land(database, data.feedback[:20], CONFIGURATION)
    return database, person


def tamper(database: Database, statement: str) -> None:
    with database.as_owner() as connection:
        as_forger(connection, "weight_changes", "audit_events", "feedback_events", "adaptation_states")
        assert connection.execute(statement.encode()).rowcount > 0


def found_in(database: Database) -> list[Tampering]:
    with database.snapshot() as connection:
        return find_tampering(connection)


def sealed(database: Database) -> Seal:
    with database.as_operator() as connection:
        made = seal(connection, "ada")
    assert made is not None
    return made


def test_a_history_that_nobody_touched_has_no_finding(history: tuple[Database, str]) -> None:
    database, _ = history
    sealed(database)
    assert found_in(database) == []


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ("after[1] = after[1] + 1", "after is ["),
        ("shift[1] = shift[1] + 1", "shift is ["),
        ("cause = 'start'", "cause is start, it was feedback"),
        ("created_at = created_at - interval '1 microsecond'", "created_at is 2"),
        ("event_digest = sha256('')", "event_digest is e3b0c44298fc1c149afbf4c8996fb924"),
        ("registry_version = 9", "its columns do not give its hash after version 6"),
        ("hash = sha256('')", "hash is e3b0c44298fc1c149afbf4c8996fb924"),
    ],
)
def test_a_changed_column_of_a_weight_change_is_named_with_what_it_was(
    history: tuple[Database, str], change: str, differs: str
) -> None:
    database, person = history
    tamper(database, f"UPDATE weight_changes SET {change} WHERE version = 7")  # noqa: S608 — of the test's own
    named = [each for each in found_in(database) if each.table == "weight_changes"]
    assert [(each.tenant_id, each.version) for each in named] == [(person, 7)]
    assert named[0].differs.startswith(differs)


def test_what_it_was_is_the_truth(history: tuple[Database, str]) -> None:
    database, _ = history
    with database.as_operator() as connection:
        ((before,),) = connection.execute("SELECT after FROM weight_changes WHERE version = 7").fetchall()
    tamper(database, "UPDATE weight_changes SET after[1] = after[1] + 1 WHERE version = 7")
    (found,) = found_in(database)
    assert found.differs.endswith(f"it was {before}")


@pytest.mark.parametrize("table", ["weight_changes", "audit_events"])
@pytest.mark.parametrize(("where", "first"), [("version = 3", 3), ("version BETWEEN 2 AND 4", 2)])
def test_deleted_rows_are_named(history: tuple[Database, str], table: str, where: str, first: int) -> None:
    database, person = history
    tamper(database, f"DELETE FROM {table} WHERE {where}")  # noqa: S608 — of the test's own
    differs = "the row is gone" if first == 3 else "the rows up to version 4 are gone"
    assert Tampering(table, person, first, differs) in found_in(database)
    assert {each.version for each in found_in(database) if each.table == table} == {first}


def test_the_end_of_the_log_cannot_be_cut_off(history: tuple[Database, str]) -> None:
    database, person = history
    tamper(database, "DELETE FROM weight_changes WHERE version > 17")
    assert [each for each in found_in(database) if each.table == "weight_changes"] == [
        Tampering("weight_changes", person, 18, "the rows up to version 20 are gone"),
    ]


@pytest.mark.parametrize(
    "change",
    ["actor = 'eve'", "action = 'nothing'", """body = '{"number": 9}'""", "created_at = now()"],
)
def test_a_changed_column_of_an_audit_event_is_found(history: tuple[Database, str], change: str) -> None:
    database, person = history
    tamper(database, f"UPDATE audit_events SET {change} WHERE version = 4")  # noqa: S608 — of the test's own
    assert found_in(database) == [
        Tampering("audit_events", person, 4, "its columns do not give its hash after version 3")
    ]


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ("utility = -utility", "its columns are not those that landed"),
        ("session_id = 'another'", "its columns are not those that landed"),
        ("digest = sha256('')", "digest is e3b0c44298fc1c149afbf4c8996fb924"),
    ],
)
def test_a_changed_feedback_event_is_named(history: tuple[Database, str], change: str, differs: str) -> None:
    database, person = history
    tamper(database, f"UPDATE feedback_events SET {change} WHERE seq = 5")  # noqa: S608 — of the test's own
    (found,) = [each for each in found_in(database) if each.table == "feedback_events"]
    assert (found.tenant_id, found.version) == (person, 5)
    assert found.differs.startswith(differs)


def test_a_deleted_feedback_event_is_named(history: tuple[Database, str]) -> None:
    database, person = history
    tamper(database, "DELETE FROM feedback_events WHERE seq = 5")
    assert found_in(database) == [
        Tampering("feedback_events", person, 5, "the row is gone, and retention sealed none such")
    ]


def test_a_log_that_was_forged_with_all_its_hashes_is_not_the_one_that_was_sealed(
    history: tuple[Database, str],
) -> None:
    database, person = history
    number = sealed(database).number
    forge_change(database, person, 7, 1)
    (found,) = found_in(database)
    assert (found.table, found.tenant_id, found.version) == ("weight_changes", person, 20)
    assert f"seal {number} of" in found.differs


def test_a_seal_is_over_every_chain_and_only_where_something_happened(history: tuple[Database, str]) -> None:
    database, person = history
    first = sealed(database)
    assert (first.number, first.chains) == (1, 2)
    with database.as_operator() as connection:
        assert seal(connection, "ada") is None
        record(connection, person, "ada", "flag", {})
    second = sealed(database)
    assert (second.number, second.chains) == (2, 3)
    assert second.root != first.root


def test_a_seal_that_was_changed_with_its_heads_is_not_the_published_one(
    history: tuple[Database, str], tmp_path: Path
) -> None:
    database, _ = history
    elsewhere = f"file://{tmp_path}"
    seal_history(database, elsewhere, "ada")
    with database.as_owner() as connection:
        as_forger(connection, "audit_seal_heads")
        connection.execute("UPDATE audit_seals SET root = sha256('')")
    with database.as_operator() as connection:
        here = read_seals(connection)
    (found,) = compare_seals(here, published_seals(elsewhere), elsewhere)
    assert (found.table, found.tenant_id, found.version) == ("audit_seals", SYSTEM, 1)
    # What is there is never written over.
    assert seal_history(database, elsewhere, "ada") is None
    assert published_seals(elsewhere) != here


def test_the_command_names_the_row_and_exits_1(
    history: tuple[Database, str], valkey: ValkeyServer, tmp_path: Path
) -> None:
    database, person = history
    environment = variables(database.url, f"{valkey.url}/7", "localhost:1") | {
        "SOMABRAIN_HOME": str(tmp_path)
    }
    intact = subprocess.run(somabrain("audit", "verify"), env=environment, capture_output=True, text=True)
    assert (intact.returncode, intact.stderr) == (0, "")
    assert "✓ every row is what was recorded" in intact.stdout
    tamper(database, "UPDATE audit_events SET actor = 'eve' WHERE version = 4")
    told = subprocess.run(somabrain("audit", "verify"), env=environment, capture_output=True, text=True)
    assert told.returncode == 1
    assert f"audit_events, {person}, version 4: its columns do not give its hash" in told.stdout
    shown = subprocess.run(
        somabrain("audit", "show", person, "--most", "1"), env=environment, capture_output=True, text=True
    )
    assert (shown.returncode, '{"number": 5}' in shown.stdout) == (0, True)
