"""Corpora of the brain: only with consent, without what was deleted, the same bytes each time."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from somabrain_dagster.corpus.artifacts import Artifacts
from somabrain_dagster.corpus.build import CannotBuild, Plan
from somabrain_dagster.corpus.examples import Example
from somabrain_dagster.corpus.exporting import (
    DEFAULT_FORMATS,
    StaleCorpus,
    artifacts_of,
    derive,
    export,
    pseudonyms_of,
    tombstones_of,
    touched,
)
from somabrain_dagster.corpus.manifest import Kind, Manifest
from somabrain_dagster.corpus.reading import open_corpus
from somabrain_dagster.corpus.verification import TOMBSTONES, verify
from somabrain_dagster.operations.chitchat import Conversation
from somabrain_dagster.settings import Settings
from somabrain_dagster.store import audit
from somabrain_dagster.store.adaptation import InvalidTenant, UnknownTenant, create_tenants
from somabrain_dagster.store.corpora import (
    NoConsent,
    consenting,
    corpus_counts,
    delete_tenant,
    preference_records,
    set_learning_loop,
    written_corpora,
)
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.feedback_contract import parse_feedback
from somabrain_dagster.store.keys import create_key
from somabrain_dagster.store.landing import Refused, land
from somabrain_dagster.store.memories import parse_memory, remember_all
from somabrain_dagster.store.memory_bodies import erase_memory
from tests.brain import CONFIGURATION
from tests.corpus.records import conversations, everything_in

KEY = "5a" * 32
PLAN = Plan(tokenizer=None, formats=("examples", "sources", "messages"), validation=0.1)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", learning_loop_enabled=True, pseudonym_key=SecretStr(KEY))


@pytest.fixture
def tenants(database: Database) -> list[str]:
    """Three people with real conversations, of whom the first two agreed."""
    held = conversations()
    by_tenant: dict[str, list[Conversation]] = {}
    for one in held:
        by_tenant.setdefault(answering(one), []).append(one)
    heaviest = sorted(by_tenant, key=lambda name: (-len(by_tenant[name]), name))[:3]
    with database.as_operator() as connection:
        create_tenants(connection, heaviest, CONFIGURATION)
        for name in heaviest:
            remember_all(connection, [memory for one in by_tenant[name] for memory in one.memories(name)])
        for name in heaviest[:2]:
            assert set_learning_loop(connection, name, True, "ada")
    return heaviest


def answering(one: Conversation) -> str:
    return one.messages[one.replies()[0][0]].speaker


def exported(database: Database, settings: Settings, **options: Any) -> Manifest:
    plan = options.pop("plan", PLAN)
    return export(database, settings, artifacts_of(settings), plan, actor="ada", **options)


def examples_of(settings: Settings, manifest: Manifest) -> list[Example]:
    corpus = open_corpus(artifacts_of(settings).url_of(manifest.corpus_id))
    return [*corpus.examples("train"), *corpus.examples("validation")]


def test_without_the_flag_nothing_is_built(
    database: Database, settings: Settings, tenants: list[str]
) -> None:
    off = Settings(home=settings.home)
    assert not off.learning_loop_enabled
    with pytest.raises(NoConsent, match="set SOMABRAIN_LEARNING_LOOP_ENABLED=1"):
        exported(database, off)
    assert not (settings.home / "artifacts").exists()


def test_without_their_consent_nobody_is_learned_from(
    database: Database, settings: Settings, tenants: list[str]
) -> None:
    with pytest.raises(NoConsent, match=f"{tenants[2]}.* does not let its data be learned from"):
        exported(database, settings, tenant=tenants[2])
    manifest = exported(database, settings)
    own = pseudonyms_of(settings)
    assert manifest.tenants.keys() == {own.tenant(name) for name in tenants[:2]}
    assert {example.tenant for example in examples_of(settings, manifest)} == manifest.tenants.keys()


def test_consent_is_audited_and_taken_back(
    database: Database, settings: Settings, tenants: list[str]
) -> None:
    with database.as_operator() as connection:
        assert not set_learning_loop(connection, tenants[0], True, "ada")
        assert set_learning_loop(connection, tenants[0], False, "bob")
        assert set_learning_loop(connection, tenants[1], False, "bob")
        events = connection.execute(
            "SELECT actor, body FROM audit_events WHERE tenant_id = %s AND action = 'learning_loop' "
            "ORDER BY version",
            (tenants[0],),
        ).fetchall()
        assert events == [("ada", {"enabled": True}), ("bob", {"enabled": False})]
        with pytest.raises(UnknownTenant):
            set_learning_loop(connection, "nobody", True, "ada")
    with pytest.raises(NoConsent, match="no tenant lets its data be learned from"):
        exported(database, settings)


def test_the_same_position_gives_the_same_bytes(
    database: Database, settings: Settings, tenants: list[str], tmp_path: Path
) -> None:
    """In two fresh homes, by one worker and by two."""
    folders = []
    for name, workers in (("one", 1), ("two", 2)):
        own = settings.model_copy(update={"home": tmp_path / name})
        manifest = exported(database, own, workers=workers)
        folders.append(everything_in(artifacts_of(own).pull(manifest.corpus_id, tmp_path / name)))
    one, two = folders
    assert one.keys() == two.keys()
    assert [path for path in one if one[path] != two[path]] in ([], ["run-metadata.json"])


def test_the_account_is_kept_and_audited(database: Database, settings: Settings, tenants: list[str]) -> None:
    manifest = exported(database, settings)
    with database.as_operator() as connection:
        (written,) = written_corpora(connection)
        assert written.corpus_id == manifest.corpus_id
        assert written.manifest["config_digest"] == manifest.config_digest
        counts = {count.tenant_id: count for count in corpus_counts(connection, 10)}
        assert audit.verify_chain(connection, audit.SYSTEM) is None
        (others,) = corpus_counts(connection, 0)
    assert counts.keys() == set(tenants[:2])
    assert sum(count.examples for count in counts.values()) == manifest.examples == others.examples
    assert sum(sum(count.rejected.values()) for count in counts.values()) == sum(
        stage.rejected for stage in manifest.stages
    )


def test_a_forgotten_memory_is_found_in_what_was_built_and_is_in_nothing_after(
    database: Database, settings: Settings, tenants: list[str], tmp_path: Path
) -> None:
    before = exported(database, settings)
    victim = examples_of(settings, before)[0]
    own = pseudonyms_of(settings)
    with database.as_operator() as connection:
        rows = connection.execute("SELECT tenant_id, memory_id FROM memories").fetchall()
        tenant_id, memory_id = next(row for row in rows if own.memory(*row) in victim.memories)
        assert erase_memory(connection, tenant_id, memory_id, "ada")
    pulled = artifacts_of(settings).pull(before.corpus_id, tmp_path)
    (finding,) = verify(pulled, tombstones_of(database, own))
    assert finding.claim == TOMBSTONES
    assert victim.digest.hex()[:16] in finding.message
    assert list(touched(database, settings)) == [artifacts_of(settings).url_of(before.corpus_id)]

    after = exported(database, settings)
    assert after.tombstones.count == 1
    assert own.memory(tenant_id, memory_id) not in {
        name for example in examples_of(settings, after) for name in example.memories
    }
    assert len(touched(database, settings)) == 1


def test_a_corpus_of_any_format_is_found_by_deletions(
    database: Database, settings: Settings, tenants: list[str]
) -> None:
    manifest = exported(database, settings, plan=Plan(tokenizer=None, formats=("messages",), validation=0.1))
    with database.as_operator() as connection:
        delete_tenant(connection, tenants[0], "ada")
    own = pseudonyms_of(settings).tenant(tenants[0])
    (rows,) = touched(database, settings).values()
    assert len(rows) == manifest.tenants[own].examples > 0


def test_a_deleted_tenant_is_found_and_never_comes_back(
    database: Database, settings: Settings, tenants: list[str]
) -> None:
    before = exported(database, settings)
    gone = tenants[0]
    with database.as_operator() as connection:
        create_key(connection, gone, "tenant", "ada")
        erased = delete_tenant(connection, gone, "ada")
    assert erased > 0
    (rows,) = touched(database, settings).values()
    held = [
        one for one in examples_of(settings, before) if one.tenant == pseudonyms_of(settings).tenant(gone)
    ]
    assert len(rows) == len(held) > 0
    with database.as_operator() as connection:
        assert consenting(connection) == [tenants[1]]
        assert connection.execute("SELECT FROM memories WHERE tenant_id = %s", (gone,)).rowcount == 0
        assert (
            connection.execute(
                "SELECT FROM api_keys WHERE tenant_id = %s AND revoked_at IS NULL", (gone,)
            ).rowcount
            == 0
        )
        with pytest.raises(InvalidTenant, match="no name is given twice"):
            create_tenants(connection, [gone], CONFIGURATION)
        with pytest.raises(UnknownTenant):
            delete_tenant(connection, gone, "ada")
        with pytest.raises(UnknownTenant):
            create_key(connection, gone, "tenant", "ada")
    (refused,) = land(
        database,
        [parse_feedback({"tenant_id": gone, "session_id": "s", "utility": 0.1})],
        CONFIGURATION,
    )
    assert isinstance(refused, Refused)
    after = exported(database, settings)
    assert after.tenants.keys() == {pseudonyms_of(settings).tenant(tenants[1])}


def test_other_formats_are_made_of_examples_only_while_they_may_be(
    database: Database, settings: Settings, tenants: list[str], tmp_path: Path
) -> None:
    kind: Kind = "training_examples"
    plan = Plan(formats=DEFAULT_FORMATS[kind], validation=0.1)
    artifacts = artifacts_of(settings)
    exported(database, settings, kind=kind, plan=plan)
    with database.as_operator() as connection:
        (source,) = written_corpora(connection, kind)
    made = derive(
        database,
        settings,
        artifacts,
        source,
        "tokenized_corpus",
        Plan(formats=DEFAULT_FORMATS["tokenized_corpus"]),
        actor="ada",
    )
    assert verify(artifacts.pull(made.corpus_id, tmp_path)) == []
    assert made.position == source.position
    texts: Sequence[Any] = (
        database,
        settings,
        artifacts,
        source,
        "training_corpus",
        Plan(formats=DEFAULT_FORMATS["training_corpus"]),
    )
    with database.as_operator() as connection:
        set_learning_loop(connection, tenants[0], False, "ada")
    with pytest.raises(NoConsent, match="any more"):
        derive(*texts, actor="ada")
    with database.as_operator() as connection:
        set_learning_loop(connection, tenants[0], True, "ada")
        delete_tenant(connection, tenants[1], "ada")
    with pytest.raises((NoConsent, StaleCorpus)):
        derive(*texts, actor="ada")


def recalled(
    database: Database, tenant: str, session: str, query: str, arm: str | None
) -> tuple[int, list[int]]:
    """A recall of three real memories, written as the log has it."""
    with database.as_operator() as connection:
        ids = [
            memory_id
            for (memory_id,) in connection.execute(
                "SELECT memory_id FROM memories WHERE tenant_id = %s ORDER BY memory_id LIMIT 3", (tenant,)
            )
        ]
        (recall_id,) = connection.execute(
            """
            INSERT INTO recalls (
                tenant_id, occurred_at, session_id, query, mode, arm, weights_version, weights, scale_version,
                registry_version, candidate_ids, features, propensities, expected, hits, cleanup_backend
            )
            SELECT %s, now(), %s, %s, 'rank', %s, version, weights, 1, 1, %s,
                array_fill(0::float8, ARRAY[18]), '{0.5,0.25,0.25}',
                array_fill(0::float8, ARRAY[6]), %s, 'exact'
            FROM adaptation_states WHERE tenant_id = %s RETURNING recall_id
            """,
            (tenant, session, query, arm, ids, ids, tenant),
        ).fetchone() or (0,)
    return recall_id, ids


def test_sessions_and_queries_of_experiments_are_not_trained_on(
    database: Database, settings: Settings, tenants: list[str]
) -> None:
    before = examples_of(settings, exported(database, settings))
    own = pseudonyms_of(settings)
    with database.as_operator() as connection:
        sessions = connection.execute(
            "SELECT DISTINCT conversation_id FROM memories WHERE tenant_id = %s", (tenants[0],)
        ).fetchall()
    held = {own.session(tenants[0], name): name for (name,) in sessions}
    chosen = next(example.session for example in before if example.session in held)
    recalled(database, tenants[0], held[chosen], "anything at all", "warm")
    after = examples_of(settings, exported(database, settings))
    assert {one.session for one in before} - {one.session for one in after} == {chosen}


def test_what_feedback_preferred_becomes_pairs(
    database: Database, settings: Settings, tenants: list[str], tmp_path: Path
) -> None:
    tenant = tenants[0]
    recall_id, ids = recalled(database, tenant, "asked", "Where did we stop?", None)
    feedback = {
        "tenant_id": tenant,
        "session_id": "asked",
        "utility": 1.0,
        "recall_id": recall_id,
        "label": "full",
        "helpful": [{"memory": ids[1]}],
    }
    (landed,) = land(database, [parse_feedback(feedback)], CONFIGURATION)
    assert not isinstance(landed, Refused), landed
    with database.snapshot() as connection:
        assert len(list(preference_records(connection, [tenant]))) == 2
    kind: Kind = "preference_pairs"
    plan = Plan(near_duplicate=None, formats=DEFAULT_FORMATS[kind], validation=0.0)
    manifest = exported(database, settings, kind=kind, plan=plan)
    rows = {entry.path: entry.rows for entry in manifest.files}
    assert rows["dpo/train.jsonl"] == rows["kto/train.jsonl"] == 1
    assert verify(artifacts_of(settings).pull(manifest.corpus_id, tmp_path)) == []


def test_nothing_to_prefer_is_said_so(database: Database, settings: Settings, tenants: list[str]) -> None:
    with pytest.raises(CannotBuild, match="nothing to learn from"):
        exported(database, settings, kind="preference_pairs")


def test_payloads_that_hold_an_example_are_one(database: Database, settings: Settings) -> None:
    with database.as_operator() as connection:
        create_tenants(connection, ["payloads"], CONFIGURATION)
        set_learning_loop(connection, "payloads", True, "ada")
        memory = {
            "tenant_id": "payloads",
            "text": "a question that was answered",
            "occurred_at": "2018-04-01T12:00:00Z",
            "payload": {"prompt": "Where is it?", "response": "Under the mat.", "history": [["Hi", "Hello"]]},
        }
        remember_all(connection, [parse_memory(memory)])
    manifest = exported(database, settings, plan=Plan(tokenizer=None, formats=("examples",), validation=0.0))
    (example,) = examples_of(settings, manifest)
    assert [turn.content for turn in example.turns] == ["Hi", "Hello", "Where is it?", "Under the mat."]


def test_the_key_of_pseudonyms_is_made_once_and_is_its_owners(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    one, other = pseudonyms_of(settings), pseudonyms_of(settings)
    assert one.tenant("ada") == other.tenant("ada") != one.session("", "ada")
    assert (tmp_path / "pseudonym.key").stat().st_mode & 0o777 == 0o600
    with pytest.raises(ValueError, match="at least 64 hexadecimal digits"):
        pseudonyms_of(Settings(home=tmp_path, pseudonym_key=SecretStr("short")))


def test_artifacts_are_where_the_settings_say(tmp_path: Path) -> None:
    assert artifacts_of(Settings(home=tmp_path)).url == f"file://{tmp_path}/artifacts"
    elsewhere = Settings(home=tmp_path, artifacts_url="memory://corpora")
    assert isinstance(artifacts_of(elsewhere), Artifacts)
    assert artifacts_of(elsewhere).url_of("one") == "memory://corpora/one"
