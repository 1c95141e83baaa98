"""Feedback that names memories of a logged recall moves the retrieval weights by the rule of credit."""

from collections.abc import Sequence

import numpy as np
import pytest

from somabrain_dagster.learning.features import FEATURES, REGISTRY_VERSION, Floats
from somabrain_dagster.learning.policy import expected_features, governed_margin, rank, scores, softmax
from somabrain_dagster.learning.weights import NAMES, RETRIEVAL, TAU, to_units
from somabrain_dagster.store.adaptation import read_state
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.feedback_contract import Feedback
from somabrain_dagster.store.landing import Refused, land
from somabrain_dagster.store.verification import verify
from tests.brain import (
    CONFIGURATION,
    assert_sound,
    changes_of,
    events_of,
    landed,
    learned,
    new_tenant,
    new_tenants,
    said,
    weights_of,
)

pytestmark = pytest.mark.learning

F = len(FEATURES)
Z = np.array(
    [
        [2.31, 0.0, 0.125, 1.75, 0.0, 1.0],
        [1.87, 0.4, 0.9375, 0.0, 1.0, 1.0],
        [1.03, 1.2, 0.0078125, 0.35, 0.0, 0.0],
        [-0.25, 0.0, 1.0, 0.7, 1.0, 0.0],
    ]
)
"""Scaled features of four candidates, made up: only the arithmetic is on trial."""
MEMORIES = [11, 12, 13, 14]


def recall(
    database: Database,
    tenant: str,
    z: Floats = Z,
    memories: Sequence[int] = MEMORIES,
    registry_version: int = REGISTRY_VERSION,
) -> tuple[int, Floats, Floats]:
    """Log a recall of these candidates under the tenant's weights of now; return its id, p and E_p z."""
    with database.as_tenants([tenant]) as connection:
        state = read_state(connection, tenant)
        units = to_units(state.weights)
        score = scores(z, units[RETRIEVAL][: z.shape[1]])
        p = softmax(score, units[TAU])
        expected = expected_features(p, z)
        order = rank(score, np.array(memories))
        (recall_id,) = connection.execute(
            """
            INSERT INTO recalls (
                tenant_id, occurred_at, session_id, query, mode, weights_version, weights, scale_version,
                registry_version, candidate_ids, features, propensities, expected, hits, governed_margin,
                cleanup_backend
            ) VALUES (%s, now(), 'session-1', 'who?', 'rank', %s, %s, 1, %s, %s, %s, %s, %s, %s, %s, 'exact')
            RETURNING recall_id
            """,
            (
                tenant,
                state.version,
                state.weights.tolist(),
                registry_version,
                list(memories),
                z.ravel().tolist(),
                p.tolist(),
                expected.tolist(),
                [memories[place] for place in order[:2]],
                governed_margin(score),
            ),
        ).fetchone() or (0,)
    return recall_id, p, expected


def credited(expected: Floats, named: dict[int, float], rate: float = 0.05) -> list[int]:
    """Nano-units by the formula in Python's own floats: the rate times the mean of credit · (z_c − E_p z)."""
    shifts = []
    for feature in range(F):
        total = 0.0
        for memory, credit in named.items():
            total += credit * (float(Z[MEMORIES.index(memory), feature]) - float(expected[feature]))
        shifts.append(round(rate * 1.0 * (total / len(named)) * 1e9))
    return shifts


@pytest.mark.parametrize(
    "named",
    [{11: 1.0}, {14: 1.0}, {13: -1.0}, {12: 0.3}, {14: 1.0, 11: -0.5, 12: 0.1}, dict.fromkeys(MEMORIES, 0.7)],
    ids=str,
)
def test_credit_moves_each_retrieval_weight_by_its_rule(
    shared_database: Database, named: dict[int, float]
) -> None:
    tenant = new_tenant(shared_database)
    landed(shared_database, [said(tenant, 0.3)])
    recall_id, _, expected = recall(shared_database, tenant)
    helpful = [{"memory": memory, "credit": credit} for memory, credit in named.items()]
    landed(shared_database, [said(tenant, 0.5, recall_id=recall_id, helpful=helpful)])

    change = changes_of(shared_database, tenant)[-1]
    assert change["shift"][RETRIEVAL] == credited(expected, named)
    assert change["shift"][TAU] == 0
    assert (
        dict(zip(NAMES, change["shift"], strict=True)).items()
        >= {
            "lambda": 25_000_000,
            "mu": -6_250_000,
            "nu": -6_250_000,
        }.items()
    )
    event = events_of(shared_database, tenant)[-1]
    assert (event["recall_id"], event["helpful"]) == (recall_id, helpful)
    assert_sound(shared_database, tenant)


def test_the_utility_moves_no_retrieval_weight_where_memories_are_named(shared_database: Database) -> None:
    tenants = new_tenants(shared_database, 2)
    for tenant, utility in zip(tenants, (-1.0, 1.0), strict=True):
        recall_id, _, _ = recall(shared_database, tenant)
        landed(shared_database, [said(tenant, utility, recall_id=recall_id, helpful=[{"memory": 12}])])
    one, other = (weights_of(shared_database, tenant) for tenant in tenants)
    assert one[RETRIEVAL] == other[RETRIEVAL]
    assert one[TAU + 1 :] != other[TAU + 1 :]


def test_the_policy_that_was_logged_is_the_one_that_counts(shared_database: Database) -> None:
    """Weights that moved between the recall and its feedback change nothing about its credit."""
    tenant = new_tenant(shared_database)
    recall_id, _, expected = recall(shared_database, tenant)
    landed(shared_database, [said(tenant, 1.0)] * 10)
    landed(shared_database, [said(tenant, recall_id=recall_id, helpful=[{"memory": 13}])])
    assert changes_of(shared_database, tenant)[-1]["shift"][RETRIEVAL] == credited(expected, {13: 1.0})


def test_what_helped_is_likelier_to_be_recalled_next_time(shared_database: Database) -> None:
    tenant = new_tenant(shared_database)
    recall_id, before, _ = recall(shared_database, tenant)
    for _ in range(30):
        landed(shared_database, [said(tenant, recall_id=recall_id, helpful=[{"memory": 13}])])
        recall_id, after, _ = recall(shared_database, tenant)
    assert before.argmax() == 0
    assert after.argmax() == 2
    assert after[2] > before[2]


def test_a_recall_may_be_rated_without_naming_a_memory(shared_database: Database) -> None:
    tenant, other = new_tenants(shared_database, 2)
    recall_id, _, _ = recall(shared_database, tenant)
    landed(shared_database, [said(tenant, 0.5, recall_id=recall_id), said(other, 0.5)])
    assert weights_of(shared_database, tenant) == weights_of(shared_database, other)
    assert events_of(shared_database, tenant)[0]["recall_id"] == recall_id


def test_one_batch_or_many_credit_alike(shared_database: Database) -> None:
    """Events that name one memory, three, or none, of recalls with different numbers of candidates."""
    together, one_by_one = new_tenants(shared_database, 2)

    def feedback(tenant: str) -> list[Feedback]:
        large, _, _ = recall(shared_database, tenant)
        small, _, _ = recall(shared_database, tenant, Z[:2], MEMORIES[:2])
        three = [{"memory": 14, "credit": 0.1}, {"memory": 12, "credit": -0.7}, {"memory": 11, "credit": 0.3}]
        return [
            said(tenant, recall_id=large, helpful=three),
            said(tenant, -0.5),
            said(tenant, recall_id=small, helpful=[{"memory": 12}]),
            said(tenant, recall_id=large, helpful=[{"memory": 13}]),
            said(tenant, recall_id=large, helpful=three, reward=-1.0),
        ]

    landed(shared_database, feedback(together))
    for event in feedback(one_by_one):
        landed(shared_database, [event])
    assert learned(shared_database, together) == learned(shared_database, one_by_one)
    assert_sound(shared_database, together)


def test_only_a_candidate_of_the_recall_can_get_credit(shared_database: Database) -> None:
    tenant = new_tenant(shared_database)
    recall_id, _, _ = recall(shared_database, tenant)
    before = learned(shared_database, tenant)
    helpful = [{"memory": 11}, {"memory": 99}]
    (outcome,) = land(shared_database, [said(tenant, recall_id=recall_id, helpful=helpful)], CONFIGURATION)
    assert isinstance(outcome, Refused)
    assert outcome.code == "unknown_candidate"
    assert "memory 99" in outcome.reason
    assert learned(shared_database, tenant) == before


def test_another_tenants_recall_is_unknown(shared_database: Database) -> None:
    """Even in a batch whose transaction sees both tenants."""
    one, other = new_tenants(shared_database, 2)
    recall_id, _, _ = recall(shared_database, one)
    batch = [said(tenant, recall_id=recall_id, helpful=[{"memory": 11}]) for tenant in (other, one)]
    stranger, own = land(shared_database, batch, CONFIGURATION)
    assert isinstance(stranger, Refused)
    assert stranger.code == "unknown_recall"
    assert not isinstance(own, Refused)


def test_a_recall_of_another_registry_can_be_rated_but_gives_no_credit(shared_database: Database) -> None:
    """A feature was added since: its logged vectors have other positions than the weights."""
    tenant, bystander = new_tenants(shared_database, 2)
    recall_id, _, _ = recall(shared_database, tenant, Z[:, :-1], registry_version=REGISTRY_VERSION - 1)
    outdated, rated, beside = land(
        shared_database,
        [
            said(tenant, recall_id=recall_id, helpful=[{"memory": 11}]),
            said(tenant, recall_id=recall_id),
            said(bystander),
        ],
        CONFIGURATION,
    )
    assert isinstance(outdated, Refused)
    assert outdated.code == "outdated_recall"
    assert "without `helpful`" in outdated.reason
    assert not isinstance(rated, Refused)
    assert not isinstance(beside, Refused)


def test_credit_is_rederived_from_the_logged_recall(database: Database) -> None:
    tenant = new_tenant(database, {"dynamic_learning_rate": True})
    for memory in MEMORIES * 3:
        recall_id, _, _ = recall(database, tenant)
        landed(
            database, [said(tenant, recall_id=recall_id, helpful=[{"memory": memory}]), said(tenant, -0.2)]
        )
    with database.snapshot() as connection:
        assert verify(connection).findings == []
