"""The room as one object: remember, link, recall. For the service, for assets and for notebooks."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from somabrain_dagster.learning.features import REGISTRY_VERSION
from somabrain_dagster.learning.policy import Scales
from somabrain_dagster.learning.weights import Nanos, by_name
from somabrain_dagster.memory.embedding import Embedder
from somabrain_dagster.memory.progress import progress_bar
from somabrain_dagster.memory.query import Query, check_query
from somabrain_dagster.memory.recall import Considered, Recall, consider, hit, weights_in_force
from somabrain_dagster.memory.remember import NewMemory, checked, embedded_text
from somabrain_dagster.memory.vectors import as_text, unit_vector
from somabrain_dagster.settings import Settings
from somabrain_dagster.store.adaptation import require_tenants
from somabrain_dagster.store.cache import SnapshotCache
from somabrain_dagster.store.database import Connection, Database
from somabrain_dagster.store.embedding_models import EmbeddingModel, ModelMismatch, adopt_model, described
from somabrain_dagster.store.memories import (
    Embedding,
    Link,
    LinkEnds,
    Memory,
    Remembered,
    check_ends,
    check_links,
    claim_keys,
    content_digest,
    count_without_embedding,
    embedded_already,
    give_embeddings,
    link_all,
    remember_all,
    unlink_all,
    without_embedding,
)
from somabrain_dagster.store.recalls import (
    Asked,
    Backend,
    RecallLog,
    Sought,
    ask,
    find_candidates,
    log_recall,
    read_bodies,
)
from somabrain_dagster.store.scales import read_scales
from somabrain_dagster.store.steering import Steering, overridden, recollect, steer, write_steering
from somabrain_dagster.store.trials import Overlay, read_trials
from somabrain_dagster.store.weeks import with_partitions

CHUNK = 512
"""Memories that are embedded and committed together."""


class Memories:
    """The memories of all tenants, through one database and one embedder. Safe to share between threads."""

    def __init__(
        self,
        database: Database,
        embedder: Embedder,
        settings: Settings,
        *,
        snapshots: SnapshotCache | None = None,
        generator: np.random.Generator | None = None,
    ) -> None:
        """Put the room together; nothing is read or started yet.

        Args:
            database: the brain's.
            embedder: makes the vectors of memories and questions.
            settings: the process's.
            snapshots: where a state is published after its τ has stepped.
            generator: whatever is drawn is drawn from it; a seeded one makes draws repeatable.
        """
        self._database = database
        self._embedder = embedder
        self._settings = settings
        self._snapshots = snapshots
        self._generator = generator or np.random.default_rng()
        self._scales: dict[int, Scales] = {}

    @property
    def _model(self) -> EmbeddingModel:
        return EmbeddingModel(self._embedder.name, self._embedder.dimension, self._embedder.digest)

    def remember(self, memory: Memory) -> Remembered:
        """Keep one memory; see `remember_all`."""
        return self.remember_all([memory])[0]

    def remember_all(self, memories: Sequence[Memory], *, progress: bool = False) -> list[Remembered]:
        """Keep memories, with their embeddings; the same content, or key, is kept once.

        They are checked before the first is kept, and committed in chunks: to remember again after an
        interruption embeds and keeps only what is missing.

        Args:
            memories: of any tenants, `NewMemory` where one brings its own vector or key.
            progress: whether to show a bar.

        Returns:
            One answer for each, in order.

        Raises:
            InvalidMemory: a field of a memory cannot be. Nothing was kept.
            InvalidEmbedding: a memory's own vector cannot be compared. Nothing was kept.
            UnknownTenant: there is no such tenant.
            ModelMismatch: a tenant's memories are embedded by another model.
            KeyReused: a key stands for another memory already.
            EmbeddingError: texts could not be embedded.
        """
        own = checked(memories, self._embedder.dimension)
        remembered: list[Remembered] = []
        with progress_bar("remembering", len(memories), shown=progress) as advance:
            for start in range(0, len(memories), CHUNK):
                chunk = slice(start, start + CHUNK)
                remembered += self._remember(memories[chunk], own[chunk])
                advance(len(memories[chunk]))
        return remembered

    def _remember(self, memories: Sequence[Memory], own: Sequence[Embedding | None]) -> list[Remembered]:
        tenants = sorted({memory.tenant_id for memory in memories})
        keys = [(memory.tenant_id, content_digest(memory)) for memory in memories]
        with self._database.as_tenants(tenants) as connection:
            there = embedded_already(connection, keys)
        vectors = list(own)
        wanted = [
            position for position, key in enumerate(keys) if vectors[position] is None and key not in there
        ]
        texts = [embedded_text(memories[position].speaker, memories[position].text) for position in wanted]
        for position, vector in zip(wanted, self._embedder.embed(texts), strict=True):
            vectors[position] = vector
        claims = [
            (memory.tenant_id, memory.key, digest)
            for memory, (_, digest) in zip(memories, keys, strict=True)
            if isinstance(memory, NewMemory) and memory.key is not None
        ]
        with self._database.as_tenants(tenants) as connection:
            require_tenants(connection, tenants)
            model_id = adopt_model(connection, tenants, self._model)
            if claims:
                claim_keys(connection, claims)
            return remember_all(connection, memories, vectors, model_id)

    def embed_missing(self, *, progress: bool = False) -> int:
        """Embed every memory, of any tenant, that has no embedding yet.

        Args:
            progress: whether to show a bar.

        Returns:
            How many got one.

        Raises:
            ModelMismatch: a tenant's other memories are embedded by another model.
            EmbeddingError: texts could not be embedded.
        """
        with self._database.as_operator() as connection:
            missing = count_without_embedding(connection)
        given = 0
        with progress_bar("embedding", missing, shown=progress) as advance:
            while True:
                with self._database.as_operator() as connection:
                    rows = without_embedding(connection, CHUNK)
                if not rows:
                    return given
                vectors = self._embedder.embed([embedded_text(speaker, text) for _, _, speaker, text in rows])
                embedded = [(row[0], row[1], vector) for row, vector in zip(rows, vectors, strict=True)]
                tenants = sorted({tenant_id for tenant_id, *_ in rows})
                with self._database.as_tenants(tenants) as connection:
                    model_id = adopt_model(connection, tenants, self._model)
                    given += give_embeddings(connection, embedded, model_id)
                advance(len(rows))

    def link(self, link: Link) -> bool:
        """Link two memories; whether the link is new. See `link_all`."""
        return self.link_all([link]) == 1

    def link_all(self, links: Sequence[Link]) -> int:
        """Link memories of the same tenant; a link that is there already stays as it is.

        Returns:
            How many links are new.

        Raises:
            InvalidLink: a field of a link cannot be. Nothing was linked.
            UnknownMemory: an end of a link is no memory of its tenant. Nothing was linked.
        """
        check_links(links)
        with self._database.as_tenants(sorted({link.tenant_id for link in links})) as connection:
            return link_all(connection, links)

    def unlink(self, ends: LinkEnds) -> bool:
        """Take a link away; whether it was there.

        Raises:
            InvalidLink: a field of the ends cannot be.
        """
        check_ends([ends])
        with self._database.as_tenants([ends.tenant_id]) as connection:
            return unlink_all(connection, [ends]) == 1

    def recall(self, query: Query, overlay: Overlay | None = None) -> Recall:
        """Recall what a question brings to mind, and log how.

        What is on trial for the tenant or its session lies over the tenant's weights, and is logged.

        Args:
            query: the question.
            overlay: in place of what is on trial.

        Returns:
            What is recalled; it is logged when this returns.

        Raises:
            InvalidQuery: a field of the question cannot be.
            InvalidEmbedding: the question's own vector cannot be compared.
            EmbeddingError: the question could not be embedded.
            UnknownTenant: there is no such tenant.
            ModelMismatch: the tenant's memories are embedded by another model.
            InvalidConfiguration: the tenant's overrides cannot be.
        """
        check_query(query)
        vector = (
            self._embedder.embed([query.text])[0]
            if query.embedding is None
            else unit_vector(query.embedding, self._embedder.dimension)
        )
        recall, steering = with_partitions(self._database, lambda: self._recall(query, vector, overlay))
        if steering is not None and steering.changes and self._snapshots is not None:
            self._snapshots.publish([steering.state])
        return recall

    def _recall(
        self, query: Query, vector: NDArray[np.float32], overlay: Overlay | None
    ) -> tuple[Recall, Steering | None]:
        """One transaction: read, weigh, steer, log."""
        settings = self._settings
        with self._database.as_tenants([query.tenant_id]) as connection:
            asked = ask(connection, query.tenant_id)
            configuration = overridden(settings.learning_configuration, asked.overrides)
            if overlay is None:
                overlay = read_trials(connection).overlay(query.tenant_id, query.session_id)
            own = self._scales_of(connection, asked.scale_version)
            scales = (
                own
                if overlay is None or overlay.scale_version is None
                else self._scales_of(connection, overlay.scale_version)
            )
            weights = weights_in_force(
                asked.state.weights,
                configuration,
                overlay,
                asked.state.levels if settings.neuromodulated_recall else None,
                own,
                scales,
            )
            sought = self._sought(query, vector, asked)
            seen, backend = find_candidates(connection, sought)
            considered = consider(
                query,
                seen,
                scales,
                weights,
                settings.graph_augment_max_additions
                if query.graph_augment_max_additions is None
                else query.graph_augment_max_additions,
                self._generator,
            )
            positions = considered.order[: query.k]
            hits = considered.memory_ids[positions].tolist()
            steering = None
            if settings.tau_adaptation and hits:
                recollection = recollect(connection, query.tenant_id, hits)
                steering = steer(configuration, recollection, asked.recall_id, hits)
            log = self._log(
                query, sought, asked, overlay, scales.version, weights, considered, hits, backend, steering
            )
            with connection.pipeline():
                log_recall(connection, asked.recall_id, log)
                if steering is not None:
                    write_steering(connection, configuration, steering)
                found = read_bodies(connection, query.tenant_id, hits)
            bodies = {row[0]: row[1:] for row in found}
        recall = Recall(
            recall_id=asked.recall_id,
            tenant_id=query.tenant_id,
            as_of=sought.as_of,
            mode=query.mode,
            arm=log.arm,
            hits=tuple(
                hit(considered, position, weights, bodies[memory_id], backend)
                for position, memory_id in zip(positions.tolist(), hits, strict=True)
                if memory_id in bodies  # or it was forgotten while it was being recalled
            ),
            candidates=len(considered.memory_ids),
            governed_margin=log.governed_margin,
            cleanup_backend=backend,
            weights=by_name(weights),
            weights_version=log.weights_version,
            scale_version=log.scale_version,
            steered_to=steering.state.version if steering is not None and steering.changes else None,
        )
        return recall, steering

    def _sought(self, query: Query, vector: NDArray[np.float32], asked: Asked) -> Sought:
        model = self._model
        if asked.model is not None and asked.model.digest != model.digest:
            raise ModelMismatch(query.tenant_id, described(asked.model), described(model))
        return Sought(
            tenant_id=query.tenant_id,
            text=query.text,
            embedding=None if asked.model is None else as_text(vector),
            as_of=query.as_of or asked.now,
            namespaces=query.namespaces,
            since=query.since,
            backend=asked.backend,
            dimension=model.dimension,
        )

    def _scales_of(self, connection: Connection, version: int) -> Scales:
        if version not in self._scales:  # a version never changes
            self._scales[version] = read_scales(connection, version)
        return self._scales[version]

    def _log(
        self,
        query: Query,
        sought: Sought,
        asked: Asked,
        overlay: Overlay | None,
        scale_version: int,
        weights: Nanos,
        considered: Considered,
        hits: list[int],
        backend: Backend,
        steering: Steering | None,
    ) -> RecallLog:
        levels = asked.state.levels if self._settings.neuromodulated_recall else None
        return RecallLog(
            tenant_id=query.tenant_id,
            occurred_at=sought.as_of,
            session_id=query.session_id,
            query=query.text,
            asker=query.asker,
            k=query.k,
            namespaces=sought.namespaces,
            since=sought.since,
            mode=query.mode,
            arm=None if overlay is None else overlay.arm,
            weights_version=asked.state.version,
            weights=weights,
            scale_version=scale_version,
            registry_version=REGISTRY_VERSION,
            model_id=asked.model_id,
            candidate_ids=considered.memory_ids,
            features=considered.features,
            propensities=considered.probabilities,
            expected=considered.expected,
            sources=considered.sources,
            hits=hits,
            governed_margin=considered.margin,
            cleanup_backend=backend,
            noradrenaline=None if levels is None else levels.noradrenaline,
            acetylcholine=None if levels is None else levels.acetylcholine,
            recalled=None if steering is None else steering.recalled,
            repeated=None if steering is None else steering.repeated,
            serotonin=None if steering is None else steering.serotonin,
        )
