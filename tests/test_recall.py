"""Recall: what it sees, in which order, why, and the log of it from which feedback learns."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
from psycopg import sql
from scipy.stats import chisquare

from somabrain_dagster.learning.features import FEATURES, REGISTRY_VERSION
from somabrain_dagster.learning.weights import NAMES, POSITION, RETRIEVAL, TAU, to_nanos
from somabrain_dagster.memory.embedding import Embedder
from somabrain_dagster.memory.memories import Memories
from somabrain_dagster.memory.query import Query
from somabrain_dagster.memory.recall import Recall
from somabrain_dagster.memory.remember import embedded_text
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.landing import Refused, land
from somabrain_dagster.store.recalls import MATCHING, RECENT, SIMILAR
from somabrain_dagster.store.scales import read_scales
from somabrain_dagster.store.trials import Overlay
from somabrain_dagster.store.verification import verify
from tests.brain import (
    CONFIGURATION,
    assert_sound,
    changes_of,
    landed,
    new_tenant,
    new_tenants,
    said,
    state_of,
)
from tests.remembering import SECOND, essence, link, logged, memory_of, messages, remember, room

pytestmark = pytest.mark.learning

SAID = messages(100)
NOW = SAID[60].occurred_at
"""The as_of of most recalls here: the message at 60 and those after it do not exist yet."""
QUESTION = "Do you like music?"


@dataclass(frozen=True)
class Life:
    """A tenant that remembers 100 messages."""

    database: Database
    memories: Memories
    tenant: str
    ids: list[int]

    def ask(self, text: str = QUESTION, **fields: Any) -> Query:
        return Query(**{"tenant_id": self.tenant, "text": text, "k": 100, "as_of": NOW, **fields})

    def recall(self, text: str = QUESTION, **fields: Any) -> Recall:
        return self.memories.recall(self.ask(text, **fields))

    def logged(self, recall: Recall) -> dict[str, Any]:
        return logged(self.database, self.tenant, recall.recall_id)


def live(database: Database, embedder: Embedder, overrides: dict[str, Any] | None = None) -> Life:
    memories, tenant = room(database, embedder), new_tenant(database, overrides)
    return Life(database, memories, tenant, remember(memories, tenant, SAID))


@pytest.fixture(scope="module")
def life(shared_database: Database, minilm: Embedder) -> Life:
    """Only read; a test that changes what is remembered lives its own."""
    return live(shared_database, minilm)


# What exists yet


def planted(life: Life, moment: Any) -> None:
    """A memory that says the question itself, and links between memories that are there: all of a moment."""
    first, second, third, *_ = life.ids
    said_now = memory_of(life.tenant, SAID[0], text=QUESTION, occurred_at=moment)
    kept = life.memories.remember(said_now).memory_id
    life.memories.link_all(
        [
            link(life.tenant, source, target, moment)
            for source in life.ids[:60]
            for target in (first, second)
            if source != target
        ]
        + [link(life.tenant, source, kept, moment) for source in life.ids[:60]]
        + [link(life.tenant, kept, third, moment)]
    )


@pytest.mark.parametrize("mode", ["rank", "sample"])
@pytest.mark.parametrize("after", [timedelta(0), timedelta(microseconds=1), timedelta(days=400)], ids=str)
def test_what_comes_later_changes_no_recall(
    shared_database: Database, minilm: Embedder, mode: str, after: timedelta
) -> None:
    """Hits, features, propensities: equal to the last bit. The same planted before is no secret."""
    life = live(shared_database, minilm)

    def recalled() -> tuple[dict[str, Any], tuple[Any, ...]]:
        seeded = room(shared_database, minilm, seed=5)
        recall = seeded.recall(life.ask(mode=mode))
        return essence(life.logged(recall)), recall.hits

    before = recalled()
    planted(life, NOW + after)
    assert recalled() == before
    planted(life, NOW - timedelta(microseconds=1))
    assert recalled() != before


def test_a_link_of_long_ago_to_a_memory_of_later_changes_no_recall(
    shared_database: Database, minilm: Embedder
) -> None:
    life = live(shared_database, minilm)
    life.memories.link_all(
        [
            link(life.tenant, source, life.ids[1], NOW - SECOND)
            for source in life.ids[:60]
            if source != life.ids[1]
        ]
    )
    before = essence(life.logged(life.recall()))
    life.memories.link_all(
        [link(life.tenant, source, life.ids[80], NOW - SECOND, weight=9.0) for source in life.ids[:60]]
    )
    assert essence(life.logged(life.recall())) == before


def test_a_message_does_not_recall_itself(life: Life) -> None:
    own = SAID[60]
    recall = life.recall(own.text, as_of=own.occurred_at)
    assert max(hit.occurred_at for hit in recall.hits) < own.occurred_at
    assert life.ids[60] not in life.logged(recall)["candidate_ids"]
    later = life.recall(own.text, as_of=own.occurred_at + timedelta(microseconds=1))
    assert later.hits[0].memory_id == life.ids[60]


def test_without_as_of_all_that_was_is_seen(life: Life) -> None:
    recall = life.recall(as_of=None)
    assert life.ids[-1] in life.logged(recall)["candidate_ids"]
    assert recall.as_of > SAID[-1].occurred_at


def test_age_is_measured_from_as_of(life: Life) -> None:
    for as_of in (NOW, NOW + timedelta(minutes=7)):
        recall = life.recall(as_of=as_of)
        with life.database.as_tenants([life.tenant]) as connection:
            scales = read_scales(connection, recall.scale_version)
        scale = scales.values[POSITION["gamma"]]
        for hit in recall.hits:
            age = (as_of - hit.occurred_at).total_seconds()
            assert hit.features["recency"] * scale == pytest.approx(2 ** (-age / scales.half_life_seconds))


# Which memories, and why


def test_each_source_brings_in_what_is_nearest_to_it(life: Life, minilm: Embedder) -> None:
    """By hand: the 50 of highest cosine, the 20 latest; and by the database: those that share a word."""
    (question,) = minilm.embed([QUESTION])
    vectors = minilm.embed([embedded_text(one.speaker, one.text) for one in SAID[:60]])
    nearest = {life.ids[place] for place in np.argsort(-(vectors @ question))[:SIMILAR]}
    with life.database.as_tenants([life.tenant]) as connection:
        rows = connection.execute(
            "SELECT memory_id FROM memories WHERE lexemes @@ to_tsquery('english', 'music | like') "
            "AND tenant_id = %s AND occurred_at < %s",
            (life.tenant, NOW),
        )
        matching = {memory_id for (memory_id,) in rows}
    assert 0 < len(matching) < MATCHING

    hits = life.recall().hits
    by = {
        source: {hit.memory_id for hit in hits if source in hit.sources}
        for source in ("similarity", "full_text", "recency")
    }
    assert by == {
        "similarity": nearest,
        "full_text": matching,
        "recency": set(life.ids[60 - RECENT : 60]),
    }
    assert len(hits) == len(nearest | matching | by["recency"])
    assert {hit.memory_id for hit in hits if hit.features["lexical"] > 0} == matching


def test_semantic_is_the_cosine(life: Life, minilm: Embedder) -> None:
    recall = life.recall()
    with life.database.as_tenants([life.tenant]) as connection:
        scale = read_scales(connection, recall.scale_version).values[POSITION["alpha"]]
    (question,) = minilm.embed([QUESTION])
    for hit in recall.hits:
        (vector,) = minilm.embed([embedded_text(hit.speaker, hit.text)])
        assert hit.features["semantic"] * scale == pytest.approx(float(vector @ question), abs=1e-6)


def test_an_own_vector_is_used_for_what_it_is(life: Life, minilm: Embedder) -> None:
    """Of any length: only its direction speaks. The same as if the text had been embedded here."""
    own = life.recall(embedding=tuple((minilm.embed([QUESTION])[0] * 8.0).tolist()))
    assert [hit.memory_id for hit in own.hits] == [hit.memory_id for hit in life.recall().hits]
    other = life.recall(embedding=tuple(minilm.embed(["a dog and a cat"])[0].tolist()))
    assert [hit.features["semantic"] for hit in other.hits] != [hit.features["semantic"] for hit in own.hits]


def test_who_asks_and_who_is_named_count(life: Life) -> None:
    asker = SAID[0].speaker
    hits = life.recall(f"what did {asker.upper()} say?", asker=asker).hits
    assert {hit.speaker == asker for hit in hits} == {True, False}
    for hit in hits:
        assert (hit.features["mention"] > 0) == (hit.speaker == asker)
        assert (hit.features["turn"] > 0) == (hit.speaker != asker)
    assert all(hit.features["turn"] == 0 for hit in life.recall().hits)


def test_an_entity_of_the_payload_is_a_mention(shared_database: Database, minilm: Embedder) -> None:
    memories, tenant = room(shared_database, minilm), new_tenant(shared_database)
    entities: list[Any] = [["Ada Lovelace", 7], "Ada Lovelace", None, ["Ada"], ["Lovelac"]]
    memories.remember_all(
        [
            memory_of(tenant, one, payload={} if names is None else {"entities": names})
            for one, names in zip(SAID, entities, strict=False)
        ]
    )
    recall = memories.recall(Query(tenant_id=tenant, text="Who was ada lovelace?"))
    mentioned = {hit.text: hit.features["mention"] > 0 for hit in recall.hits}
    assert [mentioned[one.text] for one in SAID[:5]] == [True, False, False, True, False]


def test_filters_by_namespace_and_time(shared_database: Database, minilm: Embedder) -> None:
    memories, tenant = room(shared_database, minilm), new_tenant(shared_database)
    spaces = ["", "work", "home"]
    kept = memories.remember_all(
        [memory_of(tenant, one, namespace=spaces[place % 3]) for place, one in enumerate(SAID[:60])]
    )
    ids = [one.memory_id for one in kept]
    # Links do not lead around a filter either.
    memories.link_all(
        [
            link(tenant, source, target, SAID[0].occurred_at)
            for source in ids
            for target in ids
            if source != target
        ][:2000]
    )

    def found(**fields: Any) -> set[int]:
        query = Query(**{"tenant_id": tenant, "text": QUESTION, "k": 100, "as_of": NOW, **fields})
        return {hit.memory_id for hit in memories.recall(query).hits}

    assert found() == set(ids)
    for place, name in enumerate(spaces):
        assert found(namespaces=(name,)) == set(ids[place::3])
    assert found(namespaces=("work", "home")) == set(ids) - set(ids[::3])
    assert found(namespaces=("nowhere",)) == set()
    assert found(since=SAID[40].occurred_at) == set(ids[40:])
    assert found(since=SAID[40].occurred_at, as_of=SAID[50].occurred_at, namespaces=("home",)) == set(
        ids[41:50:3]
    )


def test_a_tenant_without_memories_recalls_nothing_and_says_so(
    shared_database: Database, minilm: Embedder
) -> None:
    memories, tenant = room(shared_database, minilm), new_tenant(shared_database)
    for mode in ("rank", "sample"):
        recall = memories.recall(Query(tenant_id=tenant, text=QUESTION, mode=mode))
        assert (recall.hits, recall.candidates, recall.governed_margin) == ((), 0, 0.0)
        row = logged(shared_database, tenant, recall.recall_id)
        assert (row["candidate_ids"], row["propensities"], row["hits"]) == ([], [], [])
        assert row["expected"] == [0.0] * len(FEATURES)


@pytest.mark.parametrize("text", ["!!! ???", "the of and", "it's ' | & ! \\ <-> :*", "日本語 🙂", "a" * 8192])
def test_any_text_may_be_asked(life: Life, text: str) -> None:
    recall = life.recall(text)
    assert len(recall.hits) >= SIMILAR
    assert life.logged(recall)["query"] == text


# The score


def test_contributions_add_up_to_the_score_and_scores_to_the_policy(life: Life) -> None:
    recall = life.recall()
    assert len(recall.hits) == recall.candidates
    scores = np.array([hit.score for hit in recall.hits])
    for hit in recall.hits:
        assert sum(hit.contributions.values()) == pytest.approx(hit.score, abs=1e-12)
        for feature, name in zip(FEATURES, NAMES, strict=False):
            assert hit.contributions[feature.name] == pytest.approx(
                recall.weights[name] * hit.features[feature.name]
            )
    powers = np.exp(scores / recall.weights["tau"])
    assert [hit.probability for hit in recall.hits] == pytest.approx((powers / powers.sum()).tolist())


def test_the_margin_is_between_the_two_best_whatever_is_returned(life: Life) -> None:
    best, second, *_ = sorted((hit.score for hit in life.recall().hits), reverse=True)
    for recall in (life.recall(), life.recall(k=1), life.recall(k=3, mode="sample")):
        assert recall.governed_margin == pytest.approx(best - second, abs=1e-15)
        assert {hit.governed_margin for hit in recall.hits} == {recall.governed_margin}
        assert {hit.cleanup_backend for hit in recall.hits} == {"exact"}


def test_rank_is_by_score_then_by_id_and_always_the_same(shared_database: Database, minilm: Embedder) -> None:
    """Memories of two namespaces, alike in all else, tie."""
    memories, tenant = room(shared_database, minilm), new_tenant(shared_database)
    memories.remember_all(
        [memory_of(tenant, one, namespace=name) for name in ("one", "two") for one in SAID[:20]]
    )
    query = Query(tenant_id=tenant, text=QUESTION, k=100, as_of=NOW)
    recalls = [room(shared_database, minilm, seed).recall(query) for seed in range(3)]
    assert recalls[0].hits == recalls[1].hits == recalls[2].hits
    order = [(-hit.score, hit.memory_id) for hit in recalls[0].hits]
    assert order == sorted(order)
    assert len({score for score, _ in order}) == len(order) // 2


def test_sampling_puts_first_what_the_logged_policy_says(life: Life) -> None:
    """Seeded. What is expected fewer than five times is counted together; equal chances are told apart."""
    repetitions = 300
    policy = {hit.memory_id: hit.probability for hit in life.recall().hits}
    counts = dict.fromkeys(policy, 0)
    for _ in range(repetitions):
        recall = life.recall(mode="sample", k=1)
        counts[recall.hits[0].memory_id] += 1
    assert life.logged(recall)["propensities"] == [policy[key] for key in sorted(policy)]

    frequent = [key for key, p in policy.items() if p * repetitions >= 5]
    rest = policy.keys() - set(frequent)
    observed = np.array([counts[key] for key in frequent] + [sum(counts[key] for key in rest)])
    shares = np.array([policy[key] for key in frequent] + [sum(policy[key] for key in rest)])
    assert chisquare(observed, repetitions * shares / shares.sum()).pvalue > 0.001


def test_a_seed_repeats_its_samples_and_k_is_drawn_without_replacement(life: Life, minilm: Embedder) -> None:
    one, same, other = (
        room(life.database, minilm, seed).recall(life.ask(mode="sample", k=10)).hits for seed in (1, 1, 2)
    )
    assert one == same != other
    assert len({hit.memory_id for hit in one}) == 10


# The log


def test_every_recall_is_logged_as_it_was_made(life: Life) -> None:
    query = life.ask(
        k=7, asker="me", session_id="a session", mode="sample", namespaces=("",), since=SAID[5].occurred_at
    )
    recall = life.memories.recall(query)
    row = life.logged(recall)
    everything = {hit.memory_id: hit for hit in life.recall(asker="me", since=SAID[5].occurred_at).hits}
    state = state_of(life.database, life.tenant)

    assert (row["query"], row["asker"], row["session_id"], row["k"], row["mode"]) == (
        QUESTION,
        "me",
        "a session",
        7,
        "sample",
    )
    assert (row["occurred_at"], row["since"], row["namespaces"]) == (NOW, SAID[5].occurred_at, [""])
    assert row["hits"] == [hit.memory_id for hit in recall.hits]
    assert row["candidate_ids"] == sorted(everything)
    for place, memory_id in enumerate(row["candidate_ids"]):
        assert row["features"][place].tolist() == list(everything[memory_id].features.values())
        assert row["propensities"][place] == everything[memory_id].probability
    assert row["expected"] == pytest.approx((np.array(row["propensities"]) @ row["features"]).tolist())
    assert (row["weights"], row["weights_version"]) == (state.weights.tolist(), state.version)
    assert (row["registry_version"], row["scale_version"]) == (REGISTRY_VERSION, recall.scale_version)
    assert (row["governed_margin"], row["cleanup_backend"]) == (recall.governed_margin, "exact")
    assert (row["arm"], row["noradrenaline"], row["acetylcholine"]) == (None, None, None)
    assert (row["recalled"], row["repeated"]) == (None, None)


def waits_for(database: Database, pid: int) -> bool:
    """Whether anybody waits for a lock of this server process. One look at activity lasts a transaction."""
    with database.as_owner() as connection:
        blocked = "SELECT FROM pg_stat_activity WHERE %s = ANY (pg_blocking_pids(pid))"
        return connection.execute(blocked, (pid,)).rowcount > 0


def test_what_is_forgotten_while_it_is_recalled_is_left_out(
    shared_database: Database, minilm: Embedder
) -> None:
    """The recall waits, between finding its memories and reading them, for the lock of its tenant's state."""
    memories, tenant = room(shared_database, minilm, tau_adaptation=True), new_tenant(shared_database)
    ids = remember(memories, tenant, SAID[:5])
    with ThreadPoolExecutor(1) as pool:
        with shared_database.as_tenants([tenant]) as holder:
            holder.execute("SELECT FROM adaptation_states WHERE tenant_id = %s FOR UPDATE", (tenant,))
            (pid,) = holder.execute("SELECT pg_backend_pid()").fetchone() or (0,)
            recalling = pool.submit(memories.recall, Query(tenant_id=tenant, text=QUESTION))
            give_up = time.monotonic() + 10
            while not waits_for(shared_database, pid):
                assert not recalling.done()
                assert time.monotonic() < give_up
                time.sleep(0.01)
            with shared_database.as_tenants([tenant]) as forgetter:
                forgetter.execute("DELETE FROM memories WHERE memory_id = %s", (ids[2],))
        recall = recalling.result()
    assert {hit.memory_id for hit in recall.hits} == set(ids) - {ids[2]}
    assert set(logged(shared_database, tenant, recall.recall_id)["hits"]) == set(ids)


@pytest.mark.parametrize("steers", [False, True])
def test_the_first_recall_of_a_week_makes_its_partition(
    database: Database, minilm: Embedder, steers: bool
) -> None:
    memories, tenant = room(database, minilm, tau_adaptation=steers), new_tenant(database)
    remember(memories, tenant, SAID[:5])
    memories.recall(Query(tenant_id=tenant, text=QUESTION, k=1))
    with database.as_tenants([tenant]) as connection:
        (name,) = connection.execute("SELECT tableoid::regclass::text FROM recalls").fetchone() or ("",)
    with database.as_owner() as connection:
        connection.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier(name)))
    recall = memories.recall(Query(tenant_id=tenant, text=QUESTION))
    row = logged(database, tenant, recall.recall_id)
    assert row["hits"] == [hit.memory_id for hit in recall.hits]
    assert (row["recalled"] is not None) == steers


def test_feedback_on_a_recall_follows_the_rule_of_credit(database: Database, minilm: Embedder) -> None:
    """By hand from the log: 0.05 times the mean of credit · (z − Σ p z), rounded once to nano-units."""
    life = live(database, minilm)
    for text, mode in ((QUESTION, "rank"), ("Where are you from?", "sample"), (SAID[60].text, "rank")):
        recall = life.recall(text, mode=mode)
        row = life.logged(recall)
        named = {row["candidate_ids"][3]: 1.0, row["candidate_ids"][-1]: -0.25, row["hits"][0]: 0.5}
        helpful = [{"memory": memory, "credit": credit} for memory, credit in named.items()]
        landed(database, [said(life.tenant, 0.4, recall_id=recall.recall_id, helpful=helpful)])

        shift = []
        for feature in range(len(FEATURES)):
            total = 0.0
            for memory, credit in named.items():
                z = float(row["features"][row["candidate_ids"].index(memory), feature])
                total += credit * (z - row["expected"][feature])
            shift.append(round(0.05 * (total / len(named)) * 1e9))
        change = changes_of(database, life.tenant)[-1]
        assert change["shift"][RETRIEVAL] == shift
        assert any(shift)
        assert change["shift"][TAU] == 0
    assert_sound(database, life.tenant)
    with database.snapshot() as connection:
        assert verify(connection).findings == []


def test_a_memory_that_was_no_candidate_gets_no_credit(life: Life) -> None:
    recall = life.recall()
    helpful = [{"memory": life.ids[99]}]
    (outcome,) = land(
        life.database, [said(life.tenant, recall_id=recall.recall_id, helpful=helpful)], CONFIGURATION
    )
    assert isinstance(outcome, Refused)
    assert outcome.code == "unknown_candidate"


def test_learned_weights_change_what_is_recalled(shared_database: Database, minilm: Embedder) -> None:
    """Feedback that always names the latest message teaches recency; a tenant untaught stays as it was."""
    taught, untaught = live(shared_database, minilm), live(shared_database, minilm)
    latest = taught.ids[59]

    def place(life: Life) -> int:
        return [hit.occurred_at for hit in life.recall().hits].index(SAID[59].occurred_at)

    start = place(taught)
    assert start == place(untaught) > 0
    for _ in range(40):
        recall = taught.recall()
        landed(
            shared_database,
            [said(taught.tenant, recall_id=recall.recall_id, helpful=[{"memory": latest}])],
        )
    assert place(taught) < start == place(untaught)
    assert taught.recall(k=5).hits != untaught.recall(k=5).hits
    before, after = untaught.recall().weights, taught.recall().weights
    assert after["gamma"] > before["gamma"]


# What acts on the weights as they are read


def arm(**shifts: float) -> Overlay:
    return Overlay("variant", to_nanos([shifts.get(name, 0.0) for name in NAMES]))


def test_an_arm_shifts_the_weights_of_a_recall_and_of_nothing_else(
    shared_database: Database, minilm: Embedder
) -> None:
    life = live(shared_database, minilm)
    before = changes_of(shared_database, life.tenant), state_of(shared_database, life.tenant).weights.tolist()
    plain = life.recall()
    shifted = life.memories.recall(life.ask(), arm(alpha=0.5, tau=-0.2, delta=-0.25))
    assert {name: shifted.weights[name] - plain.weights[name] for name in NAMES} == pytest.approx(
        {**dict.fromkeys(NAMES, 0.0), "alpha": 0.5, "tau": -0.2, "delta": -0.25}
    )
    row = life.logged(shifted)
    assert (row["arm"], shifted.arm, row["weights_version"]) == ("variant", "variant", plain.weights_version)
    assert row["weights"] == to_nanos(list(shifted.weights.values())).tolist()
    assert [hit.probability for hit in shifted.hits] != [hit.probability for hit in plain.hits]
    assert life.recall().hits == plain.hits
    assert (
        changes_of(shared_database, life.tenant),
        state_of(shared_database, life.tenant).weights.tolist(),
    ) == before


@pytest.mark.parametrize("far", [-1e6, 1e6])
def test_an_arm_stays_within_the_bounds_of_its_tenant(
    shared_database: Database, minilm: Embedder, far: float
) -> None:
    life = live(shared_database, minilm, {"high": {"alpha": 2.0}})
    bounds = CONFIGURATION.overridden({"high": {"alpha": 2.0}})
    recall = life.memories.recall(life.ask(), arm(**dict.fromkeys(NAMES, far)))
    assert recall.weights == pytest.approx(bounds.low if far < 0 else bounds.high)


def test_feedback_on_an_arms_recall_is_credited_under_the_arms_policy(
    database: Database, minilm: Embedder
) -> None:
    life = live(database, minilm)
    recall = life.memories.recall(life.ask(), arm(delta=2.0, tau=-0.3))
    row = life.logged(recall)
    assert row["expected"] != life.logged(life.recall())["expected"]
    memory = row["hits"][4]
    landed(database, [said(life.tenant, recall_id=recall.recall_id, helpful=[{"memory": memory}])])
    z = row["features"][row["candidate_ids"].index(memory)]
    assert changes_of(database, life.tenant)[-1]["shift"][RETRIEVAL] == [
        round(0.05 * (float(value) - expected) * 1e9)
        for value, expected in zip(z, row["expected"], strict=True)
    ]
    with database.snapshot() as connection:
        assert verify(connection).findings == []


def test_neuromodulators_act_on_recall_where_that_is_switched_on(
    shared_database: Database, minilm: Embedder
) -> None:
    """After surprises: τ·(1 − noradrenaline), α·(1 + acetylcholine); the weights themselves stay."""
    life = live(shared_database, minilm)
    landed(shared_database, [said(life.tenant, 0.0, reward=reward) for reward in (0.1, 0.1, 0.1, -1.0)])
    state = state_of(shared_database, life.tenant)
    levels, own = state.levels, state.weights_by_name
    assert levels.noradrenaline > 0
    assert levels.acetylcholine > 0

    calm = life.recall()
    modulated = room(shared_database, minilm, neuromodulated_recall=True).recall(life.ask())
    assert calm.weights == own
    assert modulated.weights == pytest.approx(
        {
            **own,
            "tau": own["tau"] * (1 - levels.noradrenaline),
            "alpha": own["alpha"] * (1 + levels.acetylcholine),
        },
        abs=1e-9,
    )
    row = life.logged(modulated)
    assert (row["noradrenaline"], row["acetylcholine"]) == (levels.noradrenaline, levels.acetylcholine)
    assert row["weights"] == to_nanos(list(modulated.weights.values())).tolist()
    assert state_of(shared_database, life.tenant).weights.tolist() == state.weights.tolist()


def test_recalls_of_two_tenants_differ_only_by_what_they_remember(
    shared_database: Database, minilm: Embedder
) -> None:
    memories = room(shared_database, minilm)
    one, other = new_tenants(shared_database, 2)
    for tenant in (one, other):
        remember(memories, tenant, SAID[:30])

    def seen(tenant: str) -> list[tuple[Any, ...]]:
        query = Query(tenant_id=tenant, text=QUESTION, as_of=NOW)
        return [(hit.text, hit.score, hit.probability) for hit in memories.recall(query).hits]

    assert seen(one) == seen(other)
