"""Scales: measured, frozen, and changed for a tenant so that its weights go on meaning the same."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import numpy as np
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from somabrain_dagster.learning.features import FEATURES
from somabrain_dagster.learning.policy import Scales, rescaled
from somabrain_dagster.learning.weights import POSITION, RETRIEVAL, to_nanos
from somabrain_dagster.memory.embedding import Embedder
from somabrain_dagster.memory.query import Query
from somabrain_dagster.store.adaptation import UnknownTenant, remember_configurations
from somabrain_dagster.store.changes import change_scales, reset, roll_back
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.scales import UnknownScales, add_scales, list_scales, read_scales
from somabrain_dagster.store.schema import migrate
from somabrain_dagster.store.verification import REDERIVATION, verify
from somabrain_dagster.store.weight_log import START_HASH, WeightChange
from tests.brain import (
    CONFIGURATION,
    assert_sound,
    changes_of,
    landed,
    new_tenant,
    new_tenants,
    said,
    state_of,
    weights_of,
)
from tests.remembering import SECOND, logged, messages, remember, room

pytestmark = pytest.mark.learning

SHIPPED = 2
SAID = messages(60)
LATER = SAID[-1].occurred_at + SECOND
QUESTION = "Where did you go to school?"

SCALE = st.floats(0.01, 100.0)
A_VECTOR_OF_SCALES = st.tuples(*(SCALE for _ in FEATURES))


def with_factor(database: Database, version: int, factor: float) -> Scales:
    """Scales of a new version, each the shipped one times a factor."""
    with database.as_operator() as connection:
        shipped = read_scales(connection, SHIPPED)
        made = Scales(version, tuple(factor * value for value in shipped.values), shipped.half_life_seconds)
        add_scales(connection, made, f"the shipped ones times {factor}, for a test")
    return made


def use(database: Database, version: int, *tenants: str) -> list[str]:
    """Change the scales of these tenants, or of all; who changed."""
    with database.as_operator() as connection:
        changed = change_scales(connection, tenants or None, version, CONFIGURATION, "test")
    return [state.tenant_id for state in changed]


def findings(database: Database) -> list[str]:
    with database.snapshot() as connection:
        return [f"{finding.claim}: {finding}" for finding in verify(connection).findings]


def scale_version(database: Database, tenant: str) -> int:
    with database.as_tenants([tenant]) as connection:
        ((version,),) = connection.execute("SELECT scale_version FROM tenants").fetchall()
    return int(version)


# What ships


def test_the_scales_that_ship_were_measured_on_a_thousand_recalls(shared_database: Database) -> None:
    with shared_database.as_operator() as connection:
        first, shipped, *_ = list_scales(connection)
    assert (first.scales.version, set(first.scales.values)) == (1, {1.0})
    assert (shipped.scales.version, shipped.scales.half_life_seconds) == (SHIPPED, 3600.0)
    recalls = int(shipped.measured_from.split()[0].replace(",", ""))
    assert recalls >= 1000
    spread = dict(zip((feature.name for feature in FEATURES), shipped.scales.values, strict=True))
    assert spread.pop("mention") == 1.0  # nobody in the data is named: the feature as it is
    assert all(0 < value < 0.5 for value in spread.values())  # values lie in [0, 1]: no spread exceeds ½


def test_a_new_tenant_starts_in_the_shipped_scales_and_its_log_says_so(shared_database: Database) -> None:
    tenant = new_tenant(shared_database)
    (start,) = changes_of(shared_database, tenant)
    assert (start["cause"], start["scale_version"]) == ("start", SHIPPED)
    assert scale_version(shared_database, tenant) == SHIPPED
    assert_sound(shared_database, tenant)


def test_in_the_shipped_scales_the_starting_temperature_decides(
    shared_database: Database, minilm: Embedder
) -> None:
    """How many candidates share the policy, by its entropy: nearly all in scales of 1, a few as shipped."""
    memories, tenant = room(shared_database, minilm), new_tenant(shared_database)
    remember(memories, tenant, SAID)
    asked = [Query(tenant_id=tenant, text=one.text, as_of=LATER, k=1) for one in messages(120)[60::6]]

    def shares() -> list[float]:
        found = []
        for question in asked:
            row = logged(shared_database, tenant, memories.recall(question).recall_id)
            policy = np.array(row["propensities"])
            found.append(float(np.exp(-(policy * np.log(policy)).sum())) / len(policy))
        return found

    shipped = shares()
    use(shared_database, 1, tenant)
    with shared_database.as_operator() as connection:
        reset(connection, tenant, CONFIGURATION, "test")
    assert min(shares()) > 0.8
    assert max(shipped) < 0.5
    assert np.median(shipped) * len(SAID) > 2  # and yet no certainty


def tenant_of_before(url: str, tenant: str) -> None:
    """A tenant as the revision before wrote it: its log cannot name scales."""
    start = CONFIGURATION.start_nanos.tolist()
    change = WeightChange(
        tenant_id=tenant,
        version=0,
        created_at=datetime.now(UTC),
        cause="start",
        shift=[0] * len(start),
        low=start,
        high=start,
        after=start,
        configuration=bytes.fromhex(CONFIGURATION.digest),
    )
    hashed = change.hash(START_HASH)
    with Database(url) as database, database.as_operator() as connection:
        remember_configurations(connection, [CONFIGURATION])
        connection.execute("INSERT INTO tenants (tenant_id) VALUES (%s)", (tenant,))
        connection.execute(
            """
            INSERT INTO weight_changes (
                tenant_id, version, created_at, cause, shift, low, high, after, registry_version,
                configuration, hash
            ) VALUES (%s, 0, %s, 'start', %s, %s, %s, %s, 1, %s, %s)
            """,
            (tenant, change.created_at, change.shift, start, start, start, change.configuration, hashed),
        )
        connection.execute(
            """
            INSERT INTO adaptation_states
            VALUES (%s, 0, %s, %s, %s, 0, 0, 0.4, 1, 0, 0, 0, 0, '{}', %s)
            """,
            (tenant, start, hashed, change.configuration, change.created_at),
        )


def test_tenants_that_there_are_keep_their_scales_until_somebody_changes_them(empty_url: str) -> None:
    for revision in ("0001", "0002", "0003", "0004"):
        migrate(empty_url, revision)
    tenant_of_before(empty_url, "old")
    migrate(empty_url)
    with Database(empty_url) as database:
        assert scale_version(database, "old") == 1
        assert findings(database) == []
        assert_sound(database, "old")

        landed(database, [said("old", 0.5)])
        assert use(database, SHIPPED) == ["old"]
        assert scale_version(database, "old") == SHIPPED
        landed(database, [said("old", 0.5)])
        new = new_tenant(database)
        assert use(database, SHIPPED) == []
        assert findings(database) == []
        for tenant in ("old", new):
            assert_sound(database, tenant)


# A change of scales


def test_weights_become_what_they_mean_in_the_new_scales_within_their_bounds(
    shared_database: Database,
) -> None:
    """By hand: from ones to (½, 2, 3, 4, 5, 6). α would be ½ and stays at 0.8; γ 0.3, δ 2."""
    (tenant, other) = new_tenants(shared_database, 2)
    version = 101
    with shared_database.as_operator() as connection:
        add_scales(connection, Scales(version, (0.5, 2.0, 3.0, 4.0, 5.0, 6.0), 60.0), "by hand, for a test")
    assert use(shared_database, 1, tenant) == [tenant]
    with shared_database.as_operator() as connection:
        reset(connection, tenant, CONFIGURATION, "test")
    before = weights_of(shared_database, tenant)

    assert use(shared_database, version, tenant) == [tenant]
    after = weights_of(shared_database, tenant)
    assert after[RETRIEVAL] == to_nanos([0.8, 0.4, 0.3, 2.0, 0.0, 0.0]).tolist()
    assert after[RETRIEVAL.stop :] == before[RETRIEVAL.stop :]
    change = changes_of(shared_database, tenant)[-1]
    assert (change["cause"], change["scale_version"]) == ("scales", version)
    assert change["low"] == change["high"] == change["after"] == after
    assert set(change["shift"]) == {0}
    assert scale_version(shared_database, tenant) == version
    assert scale_version(shared_database, other) == SHIPPED
    assert_sound(shared_database, tenant)


@given(A_VECTOR_OF_SCALES, A_VECTOR_OF_SCALES, st.integers(0, 2**32 - 1))
def test_what_a_feature_adds_to_a_score_stays(
    old: tuple[float, ...], new: tuple[float, ...], seed: int
) -> None:
    random = np.random.default_rng(seed)
    weights = to_nanos(random.uniform(-5, 5, len(CONFIGURATION.start_nanos)))
    values = random.uniform(-1, 1, len(FEATURES))
    meant = rescaled(weights, Scales(1, old, 60.0), Scales(2, new, 60.0))
    before = weights[RETRIEVAL] * values / np.array(old)
    after = meant[RETRIEVAL] * values / np.array(new)
    np.testing.assert_allclose(after, before, rtol=1e-12, atol=0.51 / min(new))
    assert meant[RETRIEVAL.stop :].tolist() == weights[RETRIEVAL.stop :].tolist()


def test_recall_finds_the_same_with_the_same_scores(database: Database, minilm: Embedder) -> None:
    """Real memories; in scales half as large again no weight meets a bound."""
    memories, tenant = room(database, minilm), new_tenant(database)
    remember(memories, tenant, SAID)
    with_factor(database, 3, 1.5)
    question = Query(tenant_id=tenant, text=QUESTION, as_of=LATER, k=50)
    before = memories.recall(question)
    assert use(database, 3, tenant) == [tenant]
    after = memories.recall(question)
    assert (before.scale_version, after.scale_version) == (SHIPPED, 3)
    assert [hit.memory_id for hit in after.hits] == [hit.memory_id for hit in before.hits]
    assert [hit.score for hit in after.hits] == pytest.approx([hit.score for hit in before.hits], abs=1e-7)
    assert after.hits[0].features["semantic"] == pytest.approx(before.hits[0].features["semantic"] / 1.5)


def test_changed_scales_replay_and_are_derived_again(database: Database) -> None:
    tenants = new_tenants(database, 3)
    for version, factor in ((3, 1.5), (4, 0.2)):
        with_factor(database, version, factor)
    for version in (3, 4, SHIPPED):
        landed(database, [said(tenant, utility) for utility in (0.9, -0.4) for tenant in tenants])
        assert use(database, version, *tenants[:2]) == tenants[:2]
    assert use(database, 4) == tenants
    assert findings(database) == []
    for tenant in tenants:
        assert_sound(database, tenant)
    with database.as_operator() as connection:
        counts = {known.scales.version: known.tenants for known in list_scales(connection)}
        trail = connection.execute("SELECT actor, action, body FROM audit_events ORDER BY version").fetchall()
    assert counts == {1: 0, SHIPPED: 0, 3: 0, 4: 3}
    assert [(actor, action, body["scale_version"], body["tenants"]) for actor, action, body in trail] == [
        ("test", "scales", 3, 2),
        ("test", "scales", 4, 2),
        ("test", "scales", SHIPPED, 2),
        ("test", "scales", 4, 3),
    ]


def test_scales_that_a_tenant_has_already_change_nothing(shared_database: Database) -> None:
    tenant = new_tenant(shared_database)
    assert use(shared_database, SHIPPED, tenant) == []
    assert len(changes_of(shared_database, tenant)) == 1


@pytest.mark.parametrize(
    ("version", "strangers", "error"), [(99, [], UnknownScales), (1, ["nobody"], UnknownTenant)]
)
def test_what_is_unknown_is_refused_and_nothing_changes(
    shared_database: Database, version: int, strangers: list[str], error: type[Exception]
) -> None:
    tenant = new_tenant(shared_database)
    with pytest.raises(error, match="somabrain"):
        use(shared_database, version, tenant, *strangers)
    assert scale_version(shared_database, tenant) == SHIPPED
    assert len(changes_of(shared_database, tenant)) == 1


def test_a_version_that_is_there_is_frozen(shared_database: Database) -> None:
    for statement in ("UPDATE feature_scales SET scales = '{1,1,1,1,1,1}'", "DELETE FROM feature_scales"):
        with (
            pytest.raises(psycopg.errors.InsufficientPrivilege),
            shared_database.as_operator() as connection,
        ):
            connection.execute(statement.encode())
    with pytest.raises(psycopg.errors.UniqueViolation), shared_database.as_operator() as connection:
        add_scales(connection, Scales(SHIPPED, (2.0,) * len(FEATURES), 60.0), "again")


@pytest.mark.parametrize("values", [(1.0,) * 5, (1.0,) * 5 + (0.0,), (1.0,) * 5 + (float("nan"),)])
def test_scales_must_be_one_number_above_0_for_each_feature(
    shared_database: Database, values: tuple[float, ...]
) -> None:
    with pytest.raises(ValueError, match="scales"), shared_database.as_operator() as connection:
        add_scales(connection, Scales(98, values, 60.0), "wrong")


def test_a_rollback_across_a_change_of_scales_restores_what_weights_meant(database: Database) -> None:
    tenant = new_tenant(database)
    landed(database, [said(tenant, 0.9), said(tenant, 0.9)])
    learned = weights_of(database, tenant)
    with_factor(database, 3, 1.5)
    use(database, 3, tenant)
    landed(database, [said(tenant, -0.9)])
    with database.as_operator() as connection:
        state = roll_back(connection, tenant, 2, CONFIGURATION, "test")
    expected = [round(weight * 1.5) for weight in learned[RETRIEVAL]]
    assert state.weights[RETRIEVAL].tolist() == expected
    assert expected[POSITION["alpha"]] < CONFIGURATION.high_nanos[POSITION["alpha"]]
    assert findings(database) == []
    assert_sound(database, tenant)


def test_the_guard_never_looks_back_beyond_a_change_of_scales(database: Database) -> None:
    """Rewards that trip it without the change do not with it, and do once both windows lie behind it."""
    steady, changed = new_tenants(database, 2)
    with_factor(database, 3, 1.5)
    good, bad = [0.4, 0.6] * 55, [-1.0] * 25

    def feed(tenant: str, rewards: list[float]) -> list[str]:
        begin = len(changes_of(database, tenant))
        landed(database, [said(tenant, reward) for reward in rewards])
        return [change["cause"] for change in changes_of(database, tenant)[begin:]]

    for tenant in (steady, changed):
        assert "auto_rollback" not in feed(tenant, good)
    use(database, 3, changed)
    assert len(state_of(database, changed).recent_rewards) == 0
    assert "auto_rollback" in feed(steady, bad)
    assert "auto_rollback" not in feed(changed, bad)
    assert "auto_rollback" in feed(changed, [*good, *bad])
    assert findings(database) == []


def test_scales_change_while_feedback_lands(database: Database) -> None:
    """Four threads land, one changes the scales to and fro: every change is derived again all the same."""
    tenant = new_tenant(database)
    with_factor(database, 3, 1.5)

    def land_some(_: int) -> None:
        for utility in (0.3, -0.2, 0.1):
            landed(database, [said(tenant, utility)] * 4)

    with ThreadPoolExecutor(5) as pool:
        landing = [pool.submit(land_some, place) for place in range(4)]
        changing = [pool.submit(use, database, version, tenant) for version in (3, SHIPPED, 3, SHIPPED)]
        for landed_all in landing:
            landed_all.result()
        for changed in changing:
            changed.result()
    assert state_of(database, tenant).feedback_seq == 48
    assert findings(database) == []
    assert_sound(database, tenant)


# The proof


def as_owner_of(table: str, statement: str) -> Callable[[Database, str], None]:
    """What the owner of a table could do to a tenant behind everybody's back."""

    def tamper(database: Database, tenant: str) -> None:
        with database.as_owner() as connection:
            connection.execute(f"ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY".encode())
            assert connection.execute(statement.encode(), {"tenant": tenant}).rowcount == 1
            connection.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY".encode())

    return tamper


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (
            as_owner_of("tenants", "UPDATE tenants SET scale_version = 1 WHERE tenant_id = %(tenant)s"),
            "its recalls use scales 1, its log left it with 3",
        ),
        (
            as_owner_of(
                "weight_changes",
                "UPDATE weight_changes SET scale_version = 1 WHERE tenant_id = %(tenant)s AND version = 1",
            ),
            "it is not what the weights before it mean in scales 1",
        ),
        (
            as_owner_of(
                "weight_changes",
                "UPDATE weight_changes SET scale_version = NULL WHERE tenant_id = %(tenant)s AND version = 1",
            ),
            "it changes the scales, yet names none",
        ),
        (
            as_owner_of(
                "weight_changes",
                "UPDATE weight_changes SET scale_version = 77 WHERE tenant_id = %(tenant)s AND version = 1",
            ),
            "the scales 77 are not there",
        ),
        (
            as_owner_of(
                "weight_changes",
                "UPDATE weight_changes SET scale_version = 3 WHERE tenant_id = %(tenant)s AND version = 2",
            ),
            "a change of this cause names no scales",
        ),
        (
            as_owner_of("feature_scales", "UPDATE feature_scales SET scales[1] = 0.08 WHERE version = 3"),
            "it is not what the weights before it mean in scales 3",
        ),
    ],
    ids=["tenant", "version", "no version", "unknown version", "feedback", "frozen values"],
)
def test_tampered_scales_are_found(
    database: Database, tamper: Callable[[Database, str], None], message: str
) -> None:
    tenant = new_tenant(database)
    with_factor(database, 3, 1.5)
    use(database, 3, tenant)
    landed(database, [said(tenant, 0.5)])
    assert findings(database) == []
    tamper(database, tenant)
    assert any(found.startswith(REDERIVATION) and message in found for found in findings(database))
