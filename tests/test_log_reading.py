"""The log is read in blocks of any size as it is read whole, each row with the bounds that it clips to."""

import numpy as np
import pytest

from somabrain_dagster.store.changes import roll_back
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.log_reading import LogReader
from somabrain_dagster.store.verification import folded_findings, read_log, verify
from tests.brain import CONFIGURATION, landed, new_tenants, said
from tests.forgery import nudge_live_alpha


@pytest.fixture
def tenants(database: Database) -> list[str]:
    """Three tenants: one that learned and went back, one that learned, and one that heard nothing yet."""
    names = new_tenants(database, 3)
    landed(database, [said(name, utility) for utility in (0.9, 0.2, -0.3) for name in names[:2]])
    with database.as_operator() as connection:
        roll_back(connection, names[0], 1, CONFIGURATION, "test")
    return names


@pytest.mark.parametrize("rows", [1, 2, 3, 10, 11, 1000])
def test_blocks_of_any_size_are_the_log(database: Database, tenants: list[str], rows: int) -> None:
    with database.snapshot() as connection:
        whole = read_log(connection).log
        blocks = [block for block, _ in LogReader.of(connection).blocks(rows=rows)]
    assert all(len(block.versions) <= rows for block in blocks)
    assert np.sum([block.lengths for block in blocks], axis=0).tolist() == whole.lengths.tolist() == [5, 4, 1]
    assert np.concatenate([block.versions for block in blocks]).tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 0]
    for name in ("shift", "low", "high"):
        read = [getattr(block.shifts, name) for block in blocks]
        assert np.array_equal(np.concatenate(read), getattr(whole.shifts, name))
    assert np.array_equal(np.concatenate([block.after for block in blocks]), whole.after)


def test_a_row_has_its_own_bounds_or_those_of_its_configuration(
    database: Database, tenants: list[str]
) -> None:
    with database.snapshot() as connection:
        log = read_log(connection).log
    constants = [0, 4, 5, 9]
    inherited = np.setdiff1d(np.arange(10), constants)
    assert np.array_equal(log.shifts.low[constants], log.after[constants])
    assert np.array_equal(log.shifts.high[constants], log.after[constants])
    assert (log.shifts.low[inherited] == CONFIGURATION.low_nanos).all()
    assert (log.shifts.high[inherited] == CONFIGURATION.high_nanos).all()


def test_a_fold_of_blocks_finds_what_the_whole_verification_finds(
    database: Database, tenants: list[str]
) -> None:
    with database.snapshot() as connection:
        assert list(folded_findings(connection)) == []
    nudge_live_alpha(database, tenants[2])
    with database.snapshot() as connection:
        folded = list(folded_findings(connection))
        assert folded == verify(connection).findings
    assert [finding.tenant_id for finding in folded] == [tenants[2]]


def test_a_state_whose_log_is_gone_is_found(database: Database, tenants: list[str]) -> None:
    with database.as_owner() as connection:
        connection.execute("ALTER TABLE weight_changes NO FORCE ROW LEVEL SECURITY")
        connection.execute("DELETE FROM weight_changes WHERE tenant_id = %s", (tenants[1],))
    with database.snapshot() as connection:
        messages = [str(finding) for finding in folded_findings(connection)]
    assert messages[0] == f"{tenants[1]}, live state: is at version 3, the log at -1"
